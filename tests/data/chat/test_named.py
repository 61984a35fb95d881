"""The named templates render what the models' own templates render."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eagle3cli.data.chat.named import NAMED, named_template, template_text
from eagle3cli.data.chat.template import Chat
from eagle3cli.data.chat.template_check import SAMPLES, SampleConversation, check_template
from eagle3cli.errors import DataError, ModelError
from tests.data.chat.formats import FORMATS, Message
from tests.data.chat.templates import REAL, REAL_NAMES, conversations, tokenizer_for
from tests.failing import fails
from tests.tiny import tiny_tokenizer

RENDERINGS: dict[str, dict[str, list[str] | None]] = json.loads((REAL / "renderings.json").read_text(encoding="utf-8"))


def rendered(chat: Chat, messages: Any, tools: Any) -> list[str] | None:
    """The conversation and the prompt before its last reply; None where the template refuses it."""
    try:
        settled = chat.adapt_tool_calls(messages, tools)
        return [chat.render(settled, False, tools), chat.render(settled[:-1], True, tools)]
    except (DataError, ModelError):
        return None


def test_every_format_is_named_and_proven() -> None:
    assert set(NAMED) == set(FORMATS)
    assert set(NAMED) == {*REAL_NAMES, *RENDERINGS, "llama4"}


@pytest.mark.parametrize("name", REAL_NAMES)
def test_probes_render_as_the_real_template_renders_them(name: str) -> None:
    comparisons = check_template(tokenizer_for(name), name)
    assert [comparison for comparison in comparisons if not comparison.equal] == []


@pytest.mark.parametrize("name", REAL_NAMES)
@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_random_conversations_render_as_the_real_template_renders_them(name: str, data: st.DataObject) -> None:
    messages, tools = data.draw(conversations(name))
    tokenizer = tokenizer_for(name)
    assert rendered(Chat(tokenizer, name), messages, tools) == rendered(Chat(tokenizer), messages, tools)


@pytest.mark.parametrize("name", RENDERINGS)
@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: sample.name)
def test_recorded_renderings_of_templates_that_are_not_here(name: str, sample: SampleConversation) -> None:
    assert rendered(Chat(tokenizer_for(name), name), sample.messages, sample.tools) == RENDERINGS[name][sample.name]


def test_llama4_renders_as_the_installed_transformers_has_it() -> None:
    transformers = pytest.importorskip("transformers")
    source = Path(transformers.__file__).parent / "models" / "llama4" / "processing_llama4.py"
    found = re.search(r'^chat_template = (".*")$', source.read_text(encoding="utf-8"), re.MULTILINE)
    if found is None:
        pytest.skip("this transformers holds no template of Llama 4")
    tokenizer = copy.deepcopy(tokenizer_for("llama4"))
    tokenizer.chat_template = json.loads(found[1])
    assert [comparison for comparison in check_template(tokenizer, "llama4") if not comparison.equal] == []


TYPES: list[Message] = [
    {"type": "string"},
    {"type": "string", "nullable": True, "description": "A text."},
    {"type": "string", "enum": ["a", "b"], "default": "a"},
    {"type": "integer", "default": 3},
    {"type": "number"},
    {"type": "boolean", "default": False},
    {"type": "array"},
    {"type": "array", "items": {"type": "string"}, "nullable": True},
    {"type": "array", "items": {"type": "object", "properties": {"x": {"type": "number"}}, "required": ["x"]}},
    {"type": "array", "items": {"type": "object"}},
    {"type": ["string", "null"]},
    {"oneOf": [{"type": "string", "default": "x"}, {"type": "number", "description": "A number."}], "default": "x"},
    {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "boolean"}}},
    {"type": "object"},
    {},
]


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(TYPES), max_size=5), st.booleans())
def test_harmony_declares_tools_as_the_real_template_does(types: list[Message], required: bool) -> None:
    properties = {f"p{i}": spec for i, spec in enumerate(types)}
    function = {
        "name": "f",
        "description": "Does it.",
        "parameters": {"type": "object", "properties": properties, "required": ["p0"] if required else []},
    }
    tools = [{"type": "function", "function": function}]
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    tokenizer = tokenizer_for("gpt-oss")
    ours = rendered(Chat(tokenizer, "gpt-oss"), messages, tools)
    assert ours is not None
    assert ours == rendered(Chat(tokenizer), messages, tools)


def test_the_text_of_a_template(tmp_path: Path) -> None:
    tokenizer = tokenizer_for("chatml")
    assert template_text("auto", tokenizer) is None
    assert template_text("chatml", tokenizer) == named_template("chatml")
    (tmp_path / "own.jinja").write_text("{{ messages[0].content }}")
    assert template_text(str(tmp_path / "own.jinja"), tokenizer) == "{{ messages[0].content }}"


def test_a_template_must_be_known_and_fit() -> None:
    with fails("unknown-template", "qwen4") as error:
        template_text("qwen4", tiny_tokenizer())
    assert error.value.fix is not None
    assert "did you mean 'qwen" in error.value.fix
    with fails("unreadable-file"):
        template_text("absent.jinja", tiny_tokenizer())
    with fails("unknown-template", "begin_of_text"):
        template_text("llama3", tiny_tokenizer())
    bare = tiny_tokenizer()
    bare.chat_template = None
    with fails("unknown-template"):
        template_text("auto", bare)


def test_roles_that_a_format_lacks_are_refused() -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "critic", "content": "hm"}]
    for name in NAMED:
        with fails("refused-by-template", "refuses"):
            Chat(tokenizer_for(name), name).render(messages)
