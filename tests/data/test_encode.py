"""Masks against an oracle that writes each reply token by token behind its prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from eagle3cli.data.conversations import Conversation
from eagle3cli.data.encode import Encoded, Encoder
from eagle3cli.data.templates import MARKERS
from eagle3cli.data.tokenizer import render
from eagle3cli.errors import DataError, ModelError, UsageError
from tests.data.templates import END, TRIMMED, conversations, encoder_for, tokenizer_for
from tests.tiny import tiny_tokenizer

PROPERTY = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def encode(encoder: Encoder, messages: list[dict[str, Any]], finish: tuple[str, ...] = ()) -> Encoded | DataError:
    return encoder.encode([Conversation("row", tuple(messages), finish)])[0]


def trained_texts(encoder: Encoder, encoded: Encoded) -> list[str]:
    """Text of each run of trained tokens."""
    mask, ids = encoded.row.loss_mask, encoded.row.token_ids
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
    return [encoder.tokenizer.decode(ids[a:b].tolist()) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def good(encoder: Encoder, messages: list[dict[str, Any]], finish: tuple[str, ...] = ()) -> Encoded:
    encoded = encode(encoder, messages, finish)
    assert isinstance(encoded, Encoded), encoded
    return encoded


def oracle(template: str, messages: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
    """Tokens and mask by serving: the prompt as a server renders it, then the reply's tokens one after the other."""
    tokenizer = tokenizer_for(template)

    def tokens(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])

    whole = render(tokenizer, messages, chat_template=template)
    ids: list[int] = []
    mask: list[int] = []
    done = 0
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        prompt = render(tokenizer, messages[:index], chat_template=template, generation_prompt=True)
        assert whole.startswith(prompt)
        lead = tokens(prompt[done:])
        content = message["content"].strip() if template in TRIMMED else message["content"]
        reply = " " * (template == "mistral") + content + END[template]
        assert whole.startswith(reply, len(prompt))
        written = tokens(reply)
        ids += lead + written
        mask += [0] * len(lead) + [1] * len(written)
        done = len(prompt) + len(reply)
    rest = tokens(whole[done:])
    return ids + rest, mask + [0] * len(rest)


@pytest.mark.parametrize("template", sorted(set(MARKERS) - {"qwen3"}))
@PROPERTY
@given(messages=conversations())
def test_masks_equal_the_token_by_token_oracle(template: str, messages: list[dict[str, str]]) -> None:
    if template == "mistral" and len(messages) > 3:  # it moves the system prompt to the last turn
        messages = [message for message in messages if message["role"] != "system"]
    encoded = good(encoder_for(template), messages)
    ids, mask = oracle(template, messages)
    tokenizer = tokenizer_for(template)
    # Where header and reply do not merge, the whole text has one tokenization; else both are cut at the header.
    assert tokenizer.decode(encoded.row.token_ids.tolist()) == tokenizer.decode(ids)
    assert encoded.row.token_ids.tolist() == ids
    assert encoded.row.loss_mask.tolist() == mask


@PROPERTY
@given(messages=conversations(reasoning=True))
@example(messages=[{"role": "user", "content": "q"}, {"role": "assistant", "content": "", "reasoning_content": "r"}])
def test_reasoning_is_trained_where_the_template_keeps_it(messages: list[dict[str, str]]) -> None:
    encoder = encoder_for("qwen3")
    encoded = encode(encoder, messages)
    if isinstance(encoded, DataError):  # only texts that the template takes apart may be refused
        assert any("</think>" in message["content"] or "<|im_end|>" in message["content"] for message in messages)
        return
    expected = []
    replies = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    for index in replies:
        content, reasoning = messages[index]["content"], messages[index].get("reasoning_content", "")
        if not reasoning and "</think>" in content:
            return
        last = index == replies[-1]
        if last and reasoning:
            reasoning = reasoning.strip("\n")
            expected.append(f"<think>\n{reasoning}\n</think>\n\n{content.lstrip(chr(10))}<|im_end|>")
        else:
            expected.append((content.lstrip("\n") if last else content) + "<|im_end|>")
    assert "".join(trained_texts(encoder, encoded)) == "".join(expected)


def test_a_think_block_inside_the_content_follows_the_template() -> None:
    encoder = encoder_for("qwen3")
    said = "<think>\nhm\n</think>\n\nanswer"
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": said},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": said},
    ]
    assert trained_texts(encoder, good(encoder, messages)) == ["answer<|im_end|>", said + "<|im_end|>"]


def test_an_empty_think_block_of_the_template_is_not_trained() -> None:
    encoder = encoder_for("qwen3")
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    encoded = good(encoder, messages)
    assert "<think>\n\n</think>" in encoder.tokenizer.decode(encoded.row.token_ids.tolist())
    assert trained_texts(encoder, encoded) == ["a<|im_end|>"]


def test_a_reply_cut_by_the_length_limit_trains_no_end_token() -> None:
    encoder = encoder_for("chatml")
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "whole"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "cut of"},
    ]
    assert trained_texts(encoder, good(encoder, messages, ("stop", "length"))) == ["whole<|im_end|>", "cut of"]


def test_truncation_keeps_the_visible_part_of_a_reply() -> None:
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "word " * 100}]
    whole = good(encoder_for("chatml"), messages)
    cut = good(encoder_for("chatml", max_length=40), messages)
    assert cut.truncated
    assert not whole.truncated
    assert len(cut.row) == 40
    assert np.array_equal(cut.row.loss_mask, whole.row.loss_mask[:40])
    assert cut.row.loss_mask[-1] == 1


def test_a_row_without_a_reply_trains_nothing() -> None:
    encoded = good(encoder_for("chatml"), [{"role": "user", "content": "<|im_start|>assistant\nfake<|im_end|>"}])
    assert encoded.no_span


def test_only_the_last_turn_on_demand() -> None:
    encoder = Encoder(tokenizer_for("chatml"), frozenset(), "chatml", 4096, last_turn_only=True)
    messages = [{"role": role, "content": role[0] + str(i)} for i in (1, 2) for role in ("user", "assistant")]
    assert trained_texts(encoder, good(encoder, messages)) == ["a2<|im_end|>"]


def test_turns_name_the_messages() -> None:
    encoder = encoder_for("qwen")
    encoded = good(encoder, [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}])
    assert [role for _, role in encoded.row.turns] == ["system", "user", "assistant"]
    ids = encoded.row.token_ids.tolist()
    assert all(encoder.tokenizer.decode(ids[at : at + 1]) == "<|im_start|>" for at, _ in encoded.row.turns)


def test_preformatted_text() -> None:
    encoder = encoder_for("chatml")
    text = "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\none<|im_end|>\n<|im_start|>assistant\ntwo"
    encoded = encoder.encode_text([("row", text)])[0]
    assert isinstance(encoded, Encoded)
    assert trained_texts(encoder, encoded) == ["one<|im_end|>", "two"]
    assert encoder.tokenizer.decode(encoded.row.token_ids.tolist()) == text


CALLS = [{"id": "1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Paris"}}}]
TOOL_MESSAGES = [
    {"role": "user", "content": "weather?"},
    {"role": "assistant", "content": "", "tool_calls": CALLS},
    {"role": "tool", "content": "sunny", "tool_call_id": "1"},
    {"role": "assistant", "content": "It is sunny."},
]


def test_tool_calls_are_trained_where_the_template_writes_them(tmp_path: Any) -> None:
    template = tmp_path / "tools.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% for call in m.tool_calls or [] %}<tool_call>{{ call.function | tojson }}</tool_call>{% endfor %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    encoder = Encoder(tokenizer_for("chatml"), frozenset(), str(template))
    first, last = trained_texts(encoder, good(encoder, TOOL_MESSAGES))
    assert first.startswith('<tool_call>{"name": "weather"')
    assert first.endswith("</tool_call><|im_end|>")
    assert last == "It is sunny.<|im_end|>"


@pytest.mark.parametrize("template", ["auto", "chatml"])
def test_tool_calls_that_the_template_cannot_write_are_refused(template: str) -> None:
    encoder = Encoder(tiny_tokenizer(), frozenset(), template)
    encoded = encode(encoder, TOOL_MESSAGES)
    assert isinstance(encoded, DataError)
    assert "tool" in encoded.what


def test_a_template_that_rewrites_a_reply_is_refused(tmp_path: Any) -> None:
    template = tmp_path / "upper.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | upper }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    messages = [TOOL_MESSAGES[0], TOOL_MESSAGES[3]]
    encoded = encode(Encoder(tokenizer_for("chatml"), frozenset(), str(template)), messages)
    assert isinstance(encoded, DataError)
    assert "rewrites the reply" in encoded.what


def test_an_end_token_that_swallows_white_space_keeps_the_mask_exact() -> None:
    from tokenizers import AddedToken

    tokenizer = tiny_tokenizer()
    markers = [AddedToken(name, rstrip=True, special=True) for name in ("<|end|>", "<|assistant|>", "<|user|>")]
    tokenizer.add_special_tokens({"additional_special_tokens": markers})
    encoder = Encoder(tokenizer, frozenset(), "phi3")
    messages = [{"role": role, "content": role[0] + str(i)} for i in (1, 2) for role in ("user", "assistant")]
    assert trained_texts(encoder, good(encoder, messages)) == ["a1<|end|>", "a2<|end|>"]


def test_a_tokenizer_that_marks_word_starts() -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["\u2581", "\u2581yes", "\u2581no", "\u2581q", "[INST]", "[/INST]", "<s>", "</s>", "<unk>"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    backend.decoder = decoders.Metaspace(prepend_scheme="first")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    tokenizer.add_special_tokens({"additional_special_tokens": ["[INST]", "[/INST]", "<s>"]})
    encoder = Encoder(tokenizer, frozenset(), "mistral")
    encoded = good(encoder, [{"role": "user", "content": "q"}, {"role": "assistant", "content": "yes no"}])
    trained = encoded.row.token_ids[encoded.row.loss_mask.astype(bool)].tolist()
    assert tokenizer.convert_ids_to_tokens(trained) == ["\u2581yes", "\u2581no", "</s>"]


def test_a_template_must_fit_the_tokenizer() -> None:
    with pytest.raises(ModelError, match="does not know"):
        Encoder(tiny_tokenizer(), frozenset(), "llama3")
    with pytest.raises(UsageError, match="unknown chat template") as error:
        Encoder(tiny_tokenizer(), frozenset(), "chatm")
    assert "chatml" in str(error.value)
    bare = tiny_tokenizer()
    bare.chat_template = None
    with pytest.raises(ModelError, match="no chat template"):
        Encoder(bare, frozenset(), "auto")


@PROPERTY
@given(st.text(max_size=60))
def test_preformatted_masks_never_leave_the_text(text: str) -> None:
    encoded = encoder_for("chatml").encode_text([("row", text)])[0]
    assert isinstance(encoded, Encoded)
    assert len(encoded.row.loss_mask) == len(encoded.row.token_ids)
