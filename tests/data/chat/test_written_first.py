"""What the target writes before its text, in small templates: trained if it wrote it, left if the prompt has it."""

from __future__ import annotations

import pytest

from eagle3cli.data.chat.format import OPEN_BLOCK
from tests.data.chat.grammars import CHAIN, ONE, QUESTION, THOUGHT, TOOLS, TWO, by_role, encoder, shown

MARKERS = (
    "<|turn|>",
    "<|bot|>",
    "<|start_reply|>",
    "<|end_reply|>",
    "<|end_turn|>",
    "<|start_thought|>",
    "<|end_thought|>",
)
USER = "<|turn|>CONTENT<|end_turn|>"
THINKS = "{% if m.reasoning_content %}<think>\nREASONING\n</think>\n\n{% endif %}CONTENT<|im_end|>\n"
REPLY = "<|bot|><|start_reply|>CONTENT<|end_reply|><|end_turn|>"


@pytest.mark.parametrize("always", [False, True])
def test_a_marker_of_the_reply_is_trained(always: bool) -> None:
    """Cohere's way; some of its templates end every rendering with a reply's header."""
    template = by_role("<|bot|>", user=USER, assistant=REPLY, tail="<|bot|>" if always else "")
    text = shown(encoder(template, *MARKERS, eos="<|end_turn|>"), TWO)
    reply = "<|bot|>«<|start_reply|>{}<|end_reply|><|end_turn|>»"
    question = "<|turn|>{}<|end_turn|>"
    expected = question.format("q1") + reply.format("a1") + question.format("q2") + reply.format("a2")
    assert text.removesuffix("<|bot|>") == expected


def test_a_marker_that_the_prompt_ends_with_is_left() -> None:
    template = by_role("<|bot|><|start_reply|>", user=USER, assistant=REPLY)
    text = shown(encoder(template, *MARKERS, eos="<|end_turn|>"), TWO)
    assert "<|start_reply|>«a1<|end_reply|><|end_turn|>»" in text
    assert text.endswith("<|start_reply|>«a2<|end_reply|><|end_turn|>»")


def test_a_marker_behind_reasoning_that_the_prompt_has_skipped() -> None:
    """Command R7B's way: a server's prompt holds an empty thought, which past turns do not show."""
    template = by_role("<|bot|><|start_thought|><|end_thought|>", user=USER, assistant=REPLY)
    text = shown(encoder(template, *MARKERS, eos="<|end_turn|>"), TWO)
    assert "<|bot|>«<|start_reply|>a1<|end_reply|><|end_turn|>»" in text
    end = "<|bot|><|start_thought|><|end_thought|>«<|start_reply|>a2<|end_reply|><|end_turn|>»"
    assert text.endswith(end)


def test_the_marker_stands_behind_a_tool_result_too() -> None:
    calls = (
        "{% if m.tool_calls %}<|bot|>{{ m.tool_calls[0].function | tojson }}<|end_turn|>{% else %}"
        + REPLY
        + "{% endif %}"
    )
    template = by_role(
        "<|bot|><|start_thought|><|end_thought|>", user=USER, tool="<|turn|>[CONTENT]<|end_turn|>", assistant=calls
    )
    text = shown(encoder(template, *MARKERS, eos="<|end_turn|>"), CHAIN, *TOOLS)
    assert text.endswith("<|end_thought|>«<|start_reply|>a3<|end_reply|><|end_turn|>»")
    assert text.count("«") == 3


def test_a_header_that_is_one_tag_is_no_reasoning() -> None:
    """Laguna's way."""
    template = by_role(
        "<assistant>\n",
        user="<user>\nCONTENT\n</user>\n",
        assistant="<assistant>\n{% if m.reasoning_content %}<think>\nREASONING\n</think>\n{% endif %}"
        "CONTENT\n</assistant>\n",
    )
    coder = encoder(template, "</assistant>", eos="</assistant>")
    assert shown(coder, ONE) == "<user>\nq1\n</user>\n<assistant>\n«a1\n</assistant>»\n"
    assert shown(coder, THOUGHT).endswith("<assistant>\n«<think>\nr1\n</think>\na1\n</assistant>»\n")
    assert OPEN_BLOCK.search("<assistant>\n") is None
    assert OPEN_BLOCK.search("<assistant>\n<think>\n") is not None


@pytest.mark.parametrize("opening", ["<think>\n", "<think>\n\n", "<think>"])
def test_a_block_that_the_prompt_opens_is_not_opened_twice(opening: str) -> None:
    """Whatever white space stands behind the tag in the prompt, and in the turn itself."""
    template = by_role(
        "<|im_start|>bot\n" + opening,
        user="<|im_start|>user\nCONTENT<|im_end|>\n",
        assistant="<|im_start|>bot\n" + THINKS,
    )
    text = shown(encoder(template), THOUGHT)
    assert text.count("<think>") == 1
    prompt = "<|im_start|>user\nq1<|im_end|>\n<|im_start|>bot\n" + opening
    assert text.startswith(prompt + "«")
    assert text[len(prompt) :].rstrip() in ("«r1\n</think>\n\na1<|im_end|>»", "«\nr1\n</think>\n\na1<|im_end|>»")


def test_a_template_that_asks_for_no_reply_behind_a_reply() -> None:
    """Two replies in a row: the header of the second is the template's."""
    template = by_role(
        "{% if messages[-1].role != 'assistant' %}<|im_start|>bot\n{% endif %}",
        user="<|im_start|>user\nCONTENT<|im_end|>\n",
        assistant="<|im_start|>bot\nCONTENT<|im_end|>\n",
    )
    text = shown(encoder(template), [*ONE, {"role": "assistant", "content": "a2"}])
    assert text.endswith("<|im_start|>bot\n«a1<|im_end|>»\n<|im_start|>bot\n«a2<|im_end|>»\n")


def test_a_template_that_takes_tools_only_is_learnt_with_one() -> None:
    template = "{{ tools | map(attribute='function.name') | join }}\n" + by_role(
        "<|im_start|>bot\n",
        user="<|im_start|>user\nCONTENT<|im_end|>\n",
        tool="<|im_start|>tool\nCONTENT<|im_end|>\n",
        assistant="<|im_start|>bot\n{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"
        "CONTENT<|im_end|>\n",
    )
    coder = encoder("{% if not tools %}{{ raise_exception('tools!') }}{% endif %}" + template)
    assert shown(coder, ONE, *TOOLS).endswith("<|im_start|>bot\n«a1<|im_end|>»\n")
    assert shown(coder, CHAIN, *TOOLS).count("«") == 3
    assert shown(coder, [*QUESTION, CHAIN[1]], *TOOLS).endswith("<|im_end|>»\n")
