"""Replies without text, and reasoning in a content that a template leaves out or doubles: encoder and oracle apart."""

from __future__ import annotations

import pytest

from eagle3cli.data.chat.oracle import truth_of
from eagle3cli.data.chat.stand_ins import Unknown
from eagle3cli.data.conversations.conversation import Conversation
from eagle3cli.data.tokens.mask_check import Judge
from eagle3cli.errors import DataError
from tests.data.chat.formats import Message
from tests.data.chat.grammars import MARKERS, ONE, QUESTION, USER, agreed, by_role, coder_of, encoder

BLOCK = "{% if '</think>' not in m.content %}<think></think>{% endif %}"
"""For replies that have none themselves."""


def said(content: str) -> Message:
    return {"role": "assistant", "content": content}


@pytest.mark.parametrize("second", ["", " ", "a2"])
@pytest.mark.parametrize("first", ["<think>", "a1<think>\n"])
def test_behind_one_that_ends_with_the_start_of_reasoning(first: str, second: str) -> None:
    """History makes one reply of the two, so that the start of reasoning stands right before the second."""
    text = "{% if messages[loop.index0 - 1].role != 'assistant' %}<|bot|>{% endif %}{{ m.content | trim }}"
    last = "{% if loop.last or messages[loop.index0 + 1].role != 'assistant' %}<|bot_end|>{% endif %}"
    coder = coder_of(by_role("<|bot|>", user=USER, assistant=text + last))
    row = agreed(coder, [*QUESTION, said(first), said(second)])
    assert row.endswith(f"<|bot|>«{first.strip()}<|bot_end|>»<|bot|>«{second.strip()}<|bot_end|>»")


@pytest.mark.parametrize("before", [[], ONE], ids=["first", "second"])
def test_without_the_block_that_others_have(before: list[Message]) -> None:
    """The prompt begins reasoning, and the template shows nothing of it before an empty reply: whether the target
    reasoned nobody knows."""
    block = "{% if m.content %}<think>\n\n</think>\n\n{% endif %}"
    template = by_role("<|bot|><think>\n", user=USER, assistant="<|bot|>" + block + "CONTENT[END]")
    coder = encoder(template, *MARKERS, "[END]", eos="[END]")
    messages = [*before, *QUESTION, said("")]
    refused = coder.encode([Conversation("row", tuple(messages))])[0]
    assert isinstance(refused, DataError)
    assert "an empty reply behind a prompt that begins reasoning" in refused.message
    judge = Judge(coder, coder.end_ids)
    with pytest.raises(Unknown, match="it says nothing"):
        truth_of(judge.chat, messages, judge.stops)
    assert agreed(coder, [*before, *QUESTION, said("a2")]).endswith("<think>\n\n</think>\n\n«a2[END]»")


@pytest.mark.parametrize("reply", ["", "a1"])
def test_the_block_of_a_prompt_in_other_white_space(reply: str) -> None:
    """A content that has it itself is shown as it is: the block is the prompt's, who has written it."""
    coder = coder_of(by_role("<|bot|><think></think>", user=USER, assistant="<|bot|>" + BLOCK + "CONTENT<|bot_end|>"))
    row = agreed(coder, [*QUESTION, said(f"<think>\n</think>{reply}")])
    assert row.endswith(f"<|bot|><think></think>«{reply}<|bot_end|>»")


@pytest.mark.parametrize("follow", [[said("")], [*QUESTION, said("a2")]], ids=["reply", "question"])
@pytest.mark.parametrize("reasoning", ["", "r1"])
@pytest.mark.parametrize("rest", ["[/THINK]a1", "a1[/THINK]"])
def test_more_ends_of_reasoning_behind_a_block(rest: str, reasoning: str, follow: list[Message]) -> None:
    """History shows the block that the prompt had begun, empty; what a content says behind it is the target's."""
    text = "<think></think>{{ m.content.partition('</think>')[2] or m.content }}<|bot_end|>"
    coder = coder_of(by_role("<|bot|><think>\n", user=USER, assistant="<|bot|>" + text))
    row = agreed(coder, [*QUESTION, said(f"<think>{reasoning}</think>{rest}"), *follow])
    assert f"<|bot|><think></think>«{rest}<|bot_end|>»" in row


@pytest.mark.parametrize("answer", ["a1", "so a1", "b1"])
def test_lost_reasoning_in_the_words_of_the_answer(answer: str) -> None:
    """The template cuts a content's reasoning off; the row has it, though the answer has the same words."""
    text = "<|bot|>{{ m.content.split('</think>')[-1] }}<|bot_end|>"
    row = agreed(coder_of(by_role("<|bot|>", user=USER, assistant=text)), [*QUESTION, said(f"a1</think>{answer}")])
    assert row.endswith(f"<|bot|>«a1</think>{answer}<|bot_end|>»")
