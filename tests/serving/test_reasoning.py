"""Reasoning that targets mark in their text, in whole and in cut replies."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.serving.reasoning import ParsedReply, from_harmony, without_reasoning

CALL = '<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": 1}<|call|>'


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("<think>\nhm\n</think>\n\nYes.", "Yes."),
        ("hm</think>Yes.", "Yes."),
        ("<think>cut of", ""),
        ("[THINK]hm[/THINK]Yes.", "Yes."),
        ("[THINK]cut", ""),
        ("Yes.", "Yes."),
        ("Say <think> and no more.", "Say <think> and no more."),
    ],
)
def test_reasoning_is_taken_off(text: str, content: str) -> None:
    assert without_reasoning(text) == content


def test_a_prompt_that_opened_the_block_makes_an_unclosed_reply_reasoning() -> None:
    assert without_reasoning("hm, but", opened=True) == ""
    assert without_reasoning("hm</think>Yes.", opened=True) == "Yes."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant<|channel|>final<|message|>Yes.<|return|>",
            ParsedReply("Yes.", "Hm."),
        ),
        ("<|channel|>final<|message|>Yes.", ParsedReply("Yes.")),
        ("<|channel|>analysis<|message|>Hm, cut", ParsedReply("", "Hm, cut")),
        (f"<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant{CALL}", ParsedReply("", "Hm.")),
        ("analysisHm.assistantfinalYes.", ParsedReply("Yes.", "Hm.")),
        ("analysisHm, cut", ParsedReply("", "Hm, cut")),
        ("finalYes.", ParsedReply("Yes.")),
        ("Yes.", None),
    ],
)
def test_harmony(text: str, expected: ParsedReply | None) -> None:
    assert from_harmony(text) == expected


PLAIN = st.text(st.characters(exclude_characters="<", codec="utf-8"), max_size=30)


@given(PLAIN, PLAIN)
def test_harmony_gives_back_what_was_written(reasoning: str, content: str) -> None:
    written = f"<|channel|>analysis<|message|>{reasoning}<|end|><|start|>assistant<|channel|>final<|message|>{content}"
    for end in ("", "<|return|>"):
        assert from_harmony(written + end) == ParsedReply(content, reasoning or None)


@given(PLAIN, PLAIN)
def test_a_block_of_reasoning_leaves_the_answer(reasoning: str, content: str) -> None:
    assert without_reasoning(f"<think>{reasoning}</think>{content}") == content.lstrip()
