"""Text that is already in a template's format: named, learnt and custom marks around replies."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eagle3cli.data.chat.preformatted import ReplyDelimiters
from eagle3cli.data.chat.template import Chat
from eagle3cli.data.conversations.conversation import Conversation
from eagle3cli.data.tokens.encode import Encoder
from eagle3cli.data.tokens.rows import TokenRow
from tests.data.chat.formats import FORMATS, Message
from tests.data.chat.grammars import by_role, encoder
from tests.data.chat.templates import conversations, encoder_for
from tests.data.tokens.test_encode import trained_texts
from tests.tiny import tiny_tokenizer


def trained(encoder: Encoder, text: str) -> list[str]:
    encoded = encoder.encode_text([("row", text)])[0]
    assert isinstance(encoded, TokenRow), encoded
    assert encoder.tokenizer.decode(encoded.token_ids.tolist()) == text
    return trained_texts(encoder, encoded)


def test_the_end_may_be_missing() -> None:
    text = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\none<|im_end|>\n<|im_start|>assistant\ntwo"
    assert trained(encoder_for("chatml"), text) == ["one<|im_end|>", "two"]


def test_a_template_that_ends_no_reply() -> None:
    """A reply ends where the next question's header begins."""
    coder = encoder(by_role("Bot:", user="User:CONTENT\n", assistant="Bot:CONTENT\n"), "</s>", eos="</s>")
    assert trained(coder, "User:q\nBot:one\nUser:q\nBot:two</s>") == ["one", "two</s>"]


@pytest.mark.parametrize("name", sorted(set(FORMATS) - {"glm", "deepseek-v2", "mistral"}))
@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_rendered_conversation_has_the_mask_of_the_conversation(name: str, data: st.DataObject) -> None:
    messages: list[Message] = []
    for message in data.draw(conversations(name))[0]:
        if message["role"] in ("user", "assistant") and not message.get("tool_calls"):
            messages.append({key: value if key == "role" else "plain" for key, value in message.items()})
    encoder = encoder_for(name)
    text = Chat(encoder.tokenizer, name).render(messages)
    as_text = encoder.encode_text([("row", text)])[0]
    as_talk = encoder.encode([Conversation("row", tuple(messages))])[0]
    assert isinstance(as_text, TokenRow)
    assert isinstance(as_talk, TokenRow)
    if encoder.tokenizer.decode(as_talk.token_ids.tolist()) == text:  # else the server's prompt differs
        assert trained_texts(encoder, as_text) == trained_texts(encoder, as_talk)


def test_harmony_goes_on_after_its_analysis() -> None:
    """The target does not stop at <|end|>: it writes the next header itself."""
    text = (
        "<|start|>user<|message|>q<|end|><|start|>assistant<|channel|>analysis<|message|>hm<|end|>"
        "<|start|>assistant<|channel|>final<|message|>a<|return|>"
    )
    reply = text.partition("<|start|>assistant")[2]
    assert trained(encoder_for("gpt-oss"), text) == [reply]


CUSTOM = ReplyDelimiters(r"ASSISTANT:", end_of_turn_token="</s>\\n", user_header=r"\nUSER:")


def custom(last_only: bool = False) -> Encoder:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.add_special_tokens({"additional_special_tokens": ["</s>"]})
    return Encoder(tokenizer, frozenset(), last_turn_only=last_only, text_marks=CUSTOM)


def test_custom_marks_need_no_template() -> None:
    text = "USER: one ASSISTANT: 1</s>\nUSER: two ASSISTANT: 2</s>\n"
    assert trained(custom(), text) == [" 1</s>", " 2</s>"]
    assert trained(custom(last_only=True), text) == [" 2</s>"]


def test_a_reply_without_its_end_stops_at_the_next_user() -> None:
    assert trained(custom(), "USER: one ASSISTANT: 1\nUSER: two ASSISTANT: 2</s>") == [" 1", " 2</s>"]


def test_text_without_a_reply_trains_nothing() -> None:
    assert trained(custom(), "USER: one") == []


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(["ASSISTANT:", "</s>", "\nUSER:", " a", "\n", "😀"]), max_size=12))
def test_custom_masks_equal_a_walk_over_the_pieces(pieces: list[str]) -> None:
    speaking, expected = False, ""
    for piece in pieces:
        if speaking and piece == "\nUSER:":
            speaking = False
        elif speaking:
            expected += piece
            speaking = piece != "</s>"
        elif piece == "ASSISTANT:":
            speaking = True
    encoded = custom().encode_text([("row", "".join(pieces))])[0]
    assert isinstance(encoded, TokenRow)
    assert "".join(trained_texts(custom(), encoded)) == expected


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.text(max_size=60))
def test_masks_never_leave_the_text(text: str) -> None:
    encoded = encoder_for("chatml").encode_text([("row", text)])[0]
    assert isinstance(encoded, TokenRow)
    assert len(encoded.loss_mask) == len(encoded.token_ids)
