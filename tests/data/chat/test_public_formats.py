"""Masks of the formats that people publish models with: encoder and oracle against the format's grammar."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.data.chat.oracle import truth_of
from eagle3cli.data.conversations.conversation import Conversation
from eagle3cli.data.tokens.judge import compare
from eagle3cli.data.tokens.mask_check import Judge
from eagle3cli.data.tokens.rows import TokenRow
from tests.data.chat.grammars import CHAIN, TOOLS
from tests.data.chat.public_formats import PUBLIC, public_conversations, public_encoder, truth_of_format
from tests.data.chat.test_masks import some


@pytest.mark.parametrize("name", PUBLIC)
@some(12)
@given(data=st.data())
def test_rows_are_what_the_grammar_says(name: str, data: st.DataObject) -> None:
    messages, tools = data.draw(public_conversations(PUBLIC[name]))
    cut = data.draw(st.sampled_from([False, False, False, True]))
    ends = ["stop" for message in messages if message["role"] == "assistant"]
    finish = (*ends[:-1], "length") if cut else ()
    coder = public_encoder(name)
    row = coder.encode([Conversation("row", tuple(messages), finish, tuple(tools))])[0]
    assert isinstance(row, TokenRow), row
    truth = truth_of_format(PUBLIC[name], messages, cut=cut)
    assert compare(coder.tokenizer, row, truth) is None


@pytest.mark.parametrize("name", PUBLIC)
@some(6)
@given(data=st.data())
def test_the_oracle_says_what_the_grammar_says(name: str, data: st.DataObject) -> None:
    messages, tools = data.draw(public_conversations(PUBLIC[name]))
    judge = Judge(public_encoder(name), public_encoder(name).end_ids)
    told = truth_of(judge.chat, messages, judge.stops, tools=tools)
    truth = truth_of_format(PUBLIC[name], messages)
    assert told.text == truth.text
    assert told.replies == truth.replies
    assert told.prompt == truth.prompt


def test_there_are_enough_of_them() -> None:
    assert len(PUBLIC) >= 60


def test_two_replies_in_a_row_behind_a_tool_call() -> None:
    messages = [*CHAIN, {"role": "assistant", "content": "a4"}]
    row = public_encoder("chatml").encode([Conversation("row", tuple(messages), (), tuple(TOOLS))])[0]
    assert isinstance(row, TokenRow), row
    assert compare(public_encoder("chatml").tokenizer, row, truth_of_format(PUBLIC["chatml"], messages)) is None
