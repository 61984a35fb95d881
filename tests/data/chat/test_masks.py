"""Masks of every named template, and of the real ones, against the oracle of `tests.data.chat.oracle`."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eagle3cli.data.conversations.conversation import Conversation
from eagle3cli.data.tokens.encode import Encoder
from eagle3cli.data.tokens.rows import TokenRow
from eagle3cli.errors import DataError
from tests.data.chat.formats import FORMATS, Message
from tests.data.chat.oracle import expected_row
from tests.data.chat.templates import REAL_NAMES, conversations, encoder_for, tokenizer_for


def some(examples: int) -> Any:
    return settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))


def encode(encoder: Encoder, messages: list[Message], tools: list[Message]) -> TokenRow | DataError:
    return encoder.encode([Conversation("row", tuple(messages), tools=tuple(tools))])[0]


def may_refuse(name: str, messages: list[Message], tools: list[Message]) -> bool:
    """Whether the template itself is at odds with what a server shows, so that no mask is exact."""
    asked = [message["content"] for message in messages if message["role"] == "user"]
    calls = sum(bool(message.get("tool_calls")) for message in messages)
    if name.startswith("mistral"):  # writes the tools before every message that equals the last question
        return bool(tools) and len(set(asked)) < len(asked)
    return name in ("deepseek-v3", "deepseek-r1") and calls > 1  # writes the header of the first call only


def check(name: str, kind: str, encoder: Encoder, messages: list[Message], tools: list[Message]) -> None:
    encoded = encode(encoder, messages, tools)
    if isinstance(encoded, DataError):
        assert may_refuse(name, messages, tools), encoded.message
        return
    tokenizer = tokenizer_for(name, kind)
    ids, mask = expected_row(name, tokenizer, tokenizer.chat_template, messages, tools)
    assert tokenizer.decode(encoded.token_ids.tolist()) == tokenizer.decode(ids)
    assert encoded.token_ids.tolist() == ids
    assert encoded.loss_mask.tolist() == mask


@pytest.mark.parametrize("name", FORMATS)
@some(40)
@given(data=st.data())
def test_named_templates(name: str, data: st.DataObject) -> None:
    messages, tools = data.draw(conversations(name))
    check(name, "bytes", encoder_for(name), messages, tools)


@pytest.mark.parametrize("name", REAL_NAMES)
@some(30)
@given(data=st.data())
def test_templates_of_tokenizers(name: str, data: st.DataObject) -> None:
    messages, tools = data.draw(conversations(name))
    check(name, "bytes", encoder_for(name, "auto"), messages, tools)


@pytest.mark.parametrize("kind", ["digits", "words"])
@pytest.mark.parametrize("name", ["qwen3-thinking", "llama3.1", "gpt-oss", "mistral", "gemma", "deepseek-v2", "glm"])
@some(20)
@given(data=st.data())
def test_other_ways_of_splitting_text(name: str, kind: str, data: st.DataObject) -> None:
    messages, tools = data.draw(conversations(name))
    check(name, kind, encoder_for(name, kind=kind), messages, tools)


@pytest.mark.parametrize("name", FORMATS)
@some(8)
@given(data=st.data())
def test_every_turn_as_the_last_one(name: str, data: st.DataObject) -> None:
    messages, tools = data.draw(conversations(name))
    for index, message in enumerate(messages):
        if message["role"] == "assistant":
            check(name, "bytes", encoder_for(name), messages[: index + 1], tools)


@pytest.mark.parametrize("name", FORMATS)
def test_a_long_conversation_with_system_tools_and_reasoning(name: str) -> None:
    """One case that a person can read: three questions, a tool, reasoning in both ways of giving it."""
    tool = FORMATS[name].results is not None
    call = {"id": "call00001", "type": "function", "function": {"name": "look", "arguments": {"what": "rain"}}}
    messages: list[Message] = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "1", "reasoning_content": "It is one."},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "<think>\nIt is two.\n</think>\n\n2"},
        {"role": "user", "content": "Rain?"},
    ]
    if tool:
        messages.append({"role": "assistant", "content": "", "tool_calls": [call]})
        messages.append({"role": "tool", "content": "no", "tool_call_id": "call00001"})
    messages.append({"role": "assistant", "content": "No rain.", "reasoning_content": "The tool says no."})
    tools: list[Message] = [{"type": "function", "function": {"name": "look", "description": "Look."}}] if tool else []
    encoded = encode(encoder_for(name), messages, tools)
    assert isinstance(encoded, TokenRow), encoded
    check(name, "bytes", encoder_for(name), messages, tools)
    assert not encoded.no_span


def test_the_oracle_notices_a_wrong_mask() -> None:
    messages: list[Message] = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    ids, mask = expected_row("chatml", tokenizer_for("chatml"), tokenizer_for("chatml").chat_template, messages, [])
    tokens = tokenizer_for("chatml").convert_ids_to_tokens(ids)
    assert [token for token, trained in zip(tokens, mask, strict=True) if trained] == ["a", "<|im_end|>"]
