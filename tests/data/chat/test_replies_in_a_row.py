"""Replies that follow one another at once: encoder and oracle, each by itself, in small grammars."""

from __future__ import annotations

import pytest

from tests.data.chat.formats import Message
from tests.data.chat.grammars import ONE, QUESTION, REPLY, TOOLS, USER, agreed, by_role, call, coder_of, result

CALLS = "{% for c in m.tool_calls or [] %}{{ c.function | tojson }}{% endfor %}"
FIRST = "{% if messages[loop.index0 - 1].role != 'assistant' %}<|bot|>{% endif %}"
"""A header for the first of them only."""
LOOKS: list[Message] = [{"role": "user", "content": "q9"}, call(9)]
"""A call at the end: such a conversation is read by what stands around its replies."""


def said(content: str, **more: str) -> Message:
    return {"role": "assistant", "content": content, **more}


@pytest.mark.parametrize("second", ["a2", ""])
def test_history_without_a_header_between_them(second: str) -> None:
    coder = coder_of(by_role("<|bot|>", user=USER, assistant=FIRST + CALLS + "CONTENT<|bot_end|>"))
    text = agreed(coder, [*ONE, said(second, reasoning_content="r2"), *LOOKS], *TOOLS)
    assert f"<|bot|>«a1<|bot_end|>{second}<|bot_end|>»<|turn|>" in text


def test_history_that_makes_one_reply_of_them() -> None:
    last = "{% if loop.last or messages[loop.index0 + 1].role != 'assistant' %}<|bot_end|>{% endif %}"
    coder = coder_of(by_role("<|bot|>", user=USER, assistant=FIRST + CALLS + "CONTENT" + last))
    assert "<|bot|>«a1a2<|bot_end|>»<|turn|>" in agreed(coder, [*ONE, said("a2"), *LOOKS], *TOOLS)


def test_a_call_before_them_that_only_a_prompt_shows_with_a_block() -> None:
    """The block stands before the last message alone: the call's in the prompt for the answer, not behind it."""
    block = "{% if loop.last %}<think>\n\n</think>\n\n{% endif %}"
    coder = coder_of(by_role("<|bot|>", user=USER, assistant="<|bot|>" + block + CALLS + "CONTENT<|bot_end|>"))
    text = agreed(coder, [*QUESTION, call(1), said("a2")], *TOOLS)
    assert "<|bot|><think>\n\n</think>\n\n«{" in text
    assert text.endswith("<|bot_end|>»<|bot|>«a2<|bot_end|>»")


def test_one_that_begins_with_the_end_of_reasoning() -> None:
    """The template knows nothing of reasoning: it is the target's."""
    coder = coder_of(by_role("<|bot|>", user=USER, assistant="<|bot|>" + CALLS + "CONTENT<|bot_end|>"))
    text = agreed(coder, [*ONE, said("</think>a2", reasoning_content="r2"), call(1)], *TOOLS)
    assert "<|bot|>«</think>a2<|bot_end|>»" in text


def test_one_with_broken_reasoning_where_others_have_an_empty_block() -> None:
    block = "{% if 'think>' not in m.content %}<think></think>{% endif %}"
    coder = coder_of(by_role("<|bot|><think>\n", user=USER, assistant="<|bot|>" + block + CALLS + "CONTENT<|bot_end|>"))
    text = agreed(coder, [*ONE, said("r2</think>a2"), *LOOKS], *TOOLS)
    assert "<|bot|><think></think>«a1<|bot_end|>»<|bot|>«r2</think>a2<|bot_end|>»" in text


def test_results_that_are_headed_by_the_name_of_the_call() -> None:
    """Two calls of one id: the template finds the names of both."""
    names = "{% for o in messages %}{% for c in o.tool_calls or [] if c.id == m.tool_call_id %}"
    names += "{{ c.function.name }}{% endfor %}{% endfor %}"
    coder = coder_of(
        by_role("<|bot|>", user=USER, tool="<|result|>" + names + ":CONTENT", assistant="<|bot|>" + CALLS + REPLY[7:])
    )
    text = agreed(coder, [*QUESTION, call(1), result(1), call(1), result(1), said("a3")], *TOOLS)
    assert text.count("<|bot_end|>»<|result|>looklook:t1<|bot|>«") == 2
