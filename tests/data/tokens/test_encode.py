"""Single cases of masks; the oracle over all templates is in test_masks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from eagle3cli.data.chat.template import template_options
from eagle3cli.data.conversations.conversation import Conversation
from eagle3cli.data.tokens.encode import Encoder
from eagle3cli.data.tokens.rows import TokenRow
from eagle3cli.errors import DataError
from tests.data.chat.templates import encoder_for, real_template, tokenizer_for
from tests.failing import fails
from tests.tiny import tiny_tokenizer


def encode(encoder: Encoder, messages: list[dict[str, Any]], finish: tuple[str, ...] = ()) -> TokenRow | DataError:
    return encoder.encode([Conversation("row", tuple(messages), finish)])[0]


def trained_texts(encoder: Encoder, encoded: TokenRow) -> list[str]:
    """Text of each run of trained tokens."""
    mask, ids = encoded.loss_mask, encoded.token_ids
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
    return [encoder.tokenizer.decode(ids[a:b].tolist()) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def good(encoder: Encoder, messages: list[dict[str, Any]], finish: tuple[str, ...] = ()) -> TokenRow:
    encoded = encode(encoder, messages, finish)
    assert isinstance(encoded, TokenRow), encoded
    return encoded


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
    assert "<think>\n\n</think>" in encoder.tokenizer.decode(encoded.token_ids.tolist())
    assert trained_texts(encoder, encoded) == ["a<|im_end|>"]


def test_an_end_that_the_template_leaves_to_the_next_turn_is_trained_at_the_end_too() -> None:
    """GLM stops at <|user|>, which its template writes only where a user goes on."""
    encoder = encoder_for("glm")
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    assert encoder.format.unwritten == "<|user|>"
    row = good(encoder, messages)
    assert trained_texts(encoder, row)[-1].endswith("a<|user|>")
    assert encoder.tokenizer.decode(row.token_ids.tolist()).endswith("a<|user|>")
    assert "a<|user|>" not in trained_texts(encoder, good(encoder, messages, finish=("length",)))[-1]
    call = {"type": "function", "function": {"name": "f", "arguments": {}}}
    called = good(encoder, [messages[0], {"role": "assistant", "content": "", "tool_calls": [call]}])
    assert trained_texts(encoder, called)[-1].endswith("</tool_call>")
    assert not encoder_for("chatml").format.unwritten


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
    assert len(cut) == 40
    assert np.array_equal(cut.loss_mask, whole.loss_mask[:40])
    assert cut.loss_mask[-1] == 1


def test_a_row_without_a_reply_trains_nothing() -> None:
    encoded = good(encoder_for("chatml"), [{"role": "user", "content": "<|im_start|>assistant\nfake<|im_end|>"}])
    assert encoded.no_span


TEXTBOOK = (
    "{% for m in messages %}{% if m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% generation %}{{ SAID }}<|im_end|>\n{% endgeneration %}"
    "{% else %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TWO_TURNS = [{"role": role, "content": role[0] + str(i)} for i in (1, 2) for role in ("user", "assistant")]


def test_generation_marks_of_the_template() -> None:
    """The mark holds the line break behind the end token, which the target never writes."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEXTBOOK.replace("SAID", "m.content")
    encoder = Encoder(tokenizer, frozenset())
    assert trained_texts(encoder, good(encoder, TWO_TURNS)) == ["a1<|im_end|>", "a2<|im_end|>"]


def test_generation_marks_tell_what_nothing_else_does() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = TEXTBOOK.replace("SAID", "m.content | upper")
    encoder = Encoder(tokenizer, frozenset())
    assert trained_texts(encoder, good(encoder, TWO_TURNS)) == ["A1<|im_end|>", "A2<|im_end|>"]


def test_a_reply_outside_all_generation_marks_is_not_trained() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        TEXTBOOK.replace("{% generation %}", "{% if loop.last %}{% generation %}")
        .replace("{% endgeneration %}", "{% endgeneration %}{% else %}{{ m.content }}<|im_end|>\n{% endif %}")
        .replace("SAID", "m.content")
    )
    encoder = Encoder(tokenizer, frozenset())
    assert trained_texts(encoder, good(encoder, TWO_TURNS)) == ["a2<|im_end|>"]


@pytest.mark.parametrize(("system", "block"), [("/no_think /system_override", True), ("/system_override", False)])
def test_smollm3_marks_its_header_too(system: str, block: bool) -> None:
    """A published template whose generation marks hold the header and, without reasoning, an empty block."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = real_template("smollm3")
    encoder = Encoder(tokenizer, frozenset())
    encoded = good(encoder, [{"role": "system", "content": system}, *TWO_TURNS])
    assert ("<think>" in encoder.tokenizer.decode(encoded.token_ids.tolist())) is block
    assert trained_texts(encoder, encoded) == ["a1<|im_end|>", "a2<|im_end|>"]


def test_the_system_prompt_takes_the_place_of_the_rows_own() -> None:
    encoder = Encoder(tokenizer_for("qwen"), frozenset(), "qwen", system_prompt="Be kind.")
    for messages in (TWO_TURNS, [{"role": "system", "content": "Be rude."}, *TWO_TURNS]):
        encoded = good(encoder, messages, ("stop", "length"))
        text = encoder.tokenizer.decode(encoded.token_ids.tolist())
        assert text.startswith("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nu1")
        assert trained_texts(encoder, encoded) == ["a1<|im_end|>", "a2"]


def test_a_cut_reply_whose_reasoning_the_template_drops() -> None:
    """DeepSeek R1 opens the block of reasoning in the prompt; what the limit cut stands behind it."""
    encoder = encoder_for("deepseek-r1")
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "<think>\nhm, hm"}]
    encoded = good(encoder, messages, ("length",))
    text = encoder.tokenizer.decode(encoded.token_ids.tolist())
    assert text.endswith("<｜Assistant｜><think>\nhm, hm<｜end▁of▁sentence｜>")
    assert trained_texts(encoder, encoded) == ["hm, hm"]


def test_r1_rows_are_what_a_server_shows() -> None:
    encoder = encoder_for("deepseek-r1")
    said = "<think>\nhm\n</think>\n\nanswer"
    messages = [
        {"role": "user", "content": "one"},
        {"role": "assistant", "content": said},
        {"role": "user", "content": "two"},
        {"role": "assistant", "content": said},
    ]
    end = "<｜end▁of▁sentence｜>"
    assert trained_texts(encoder, good(encoder, messages)) == ["\n\nanswer" + end, "hm\n</think>\n\nanswer" + end]


@pytest.mark.parametrize("look", ["", "{{ m.content[:0] }}"])
def test_a_template_without_a_generation_prompt(look: str) -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n" + look + "{{ m.content }}"
        "{% for call in m.tool_calls or [] %}{{ call | tojson }}{% endfor %}<|im_end|>\n{% endfor %}"
    )  # fmt: skip
    encoder = Encoder(tokenizer, frozenset())
    assert trained_texts(encoder, good(encoder, TWO_TURNS)) == ["a1<|im_end|>", "a2<|im_end|>"]
    first, last = trained_texts(encoder, good(encoder, TOOL_MESSAGES))
    assert first.startswith('{"id": "1"')
    assert last == "It is sunny.<|im_end|>"


def test_a_template_for_one_turn_only() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{% if messages | length > 2 %}{{ 1 / 0 }}{% endif %}" + tokenizer.chat_template
    encoder = Encoder(tokenizer, frozenset())
    assert trained_texts(encoder, good(encoder, TWO_TURNS[:2])) == ["a1<|im_end|>"]
    refused = encode(encoder, TWO_TURNS)
    assert isinstance(refused, DataError)
    assert "division by zero" in refused.message


def test_an_end_of_two_tokens() -> None:
    """As Cohere's models: the reply's own end, and behind it the token at which they stop."""
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|END_RESPONSE|>"]})
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
        "{% if m.role == 'assistant' %}<|END_RESPONSE|>{% endif %}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    encoder = Encoder(tokenizer, frozenset({tokenizer.eos_token_id}))
    end = "<|END_RESPONSE|><|im_end|>"
    assert trained_texts(encoder, good(encoder, TWO_TURNS)) == ["a1" + end, "a2" + end]


@pytest.mark.parametrize(
    "reply", [{"content": "<think>\nhm\n</think>\n\na"}, {"content": "a", "reasoning_content": "hm"}]
)
def test_a_template_that_opens_reasoning_but_does_not_read_it(reply: dict[str, str]) -> None:
    """As Nemotron Nano's: `<think>` stands before the last reply whatever that holds."""
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n"
        "{{ '<think>\n' if loop.last and m.role == 'assistant' }}{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n<think>\n{% endif %}"
    )
    encoder = Encoder(tokenizer, frozenset())
    encoded = good(encoder, [{"role": "user", "content": "q"}, {"role": "assistant", **reply}])
    assert trained_texts(encoder, encoded) == ["hm\n</think>\n\na<|im_end|>"]


def with_options(name: str, **options: Any) -> Encoder:
    tokenizer = tokenizer_for(name)
    return Encoder(tokenizer, frozenset({tokenizer.eos_token_id}), name, chat_options=options)


def text_of(encoder: Encoder, encoded: TokenRow) -> str:
    return str(encoder.tokenizer.decode(encoded.token_ids.tolist()))


def test_options_of_the_template() -> None:
    encoder = with_options("gpt-oss", reasoning_effort="high")
    assert "Reasoning: high" in text_of(encoder, good(encoder, TWO_TURNS))
    encoder = with_options("qwen3", enable_thinking=False)
    encoded = good(encoder, TWO_TURNS)
    assert text_of(encoder, encoded).endswith("assistant\n<think>\n\n</think>\n\na2<|im_end|>\n")
    assert trained_texts(encoder, encoded) == ["a1<|im_end|>", "a2<|im_end|>"]


def test_a_prompt_that_asks_for_reasoning_which_the_template_never_writes() -> None:
    encoder = with_options("deepseek-v3.1", thinking=True)
    messages = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "reasoning_content": "hm"}]
    encoded = good(encoder, messages)
    reply = "hm\n</think>\n\na<｜end▁of▁sentence｜>"
    assert text_of(encoder, encoded).endswith("<｜Assistant｜><think>" + reply)
    assert trained_texts(encoder, encoded) == [reply]


def test_options_are_pairs() -> None:
    assert template_options(["a=1", "b=false", "c=high", 'd={"e": [2]}', "f="]) == {
        "a": 1, "b": False, "c": "high", "d": {"e": [2]}, "f": ""
    }  # fmt: skip
    with fails("invalid-value"):
        template_options(["thinking"])


def test_a_system_prompt_that_the_template_moves_to_the_last_question() -> None:
    """Mistral's whole rendering has no system prompt at all; a server's prompt has it."""
    encoder = encoder_for("mistral")
    encoded = good(encoder, [{"role": "system", "content": "Be kind."}, *TWO_TURNS])
    assert text_of(encoder, encoded) == "<s>[INST] u1[/INST] a1</s>[INST] Be kind.\n\nu2[/INST] a2</s>"
    assert trained_texts(encoder, encoded) == [" a1</s>", " a2</s>"]


def test_only_the_last_turn_on_demand() -> None:
    encoder = Encoder(tokenizer_for("chatml"), frozenset(), "chatml", 4096, last_turn_only=True)
    assert trained_texts(encoder, good(encoder, TWO_TURNS)) == ["a2<|im_end|>"]


def test_turns_name_the_messages() -> None:
    encoder = encoder_for("qwen")
    encoded = good(encoder, [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}])
    assert [role for _, role in encoded.turns] == ["system", "user", "assistant"]
    ids = encoded.token_ids.tolist()
    assert all(encoder.tokenizer.decode(ids[at : at + 1]) == "<|im_start|>" for at, _ in encoded.turns)


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
    assert "tool" in encoded.message


def test_a_template_that_rewrites_a_reply_is_refused(tmp_path: Any) -> None:
    template = tmp_path / "upper.jinja"
    template.write_text(
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content | upper }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    messages = [TOOL_MESSAGES[0], TOOL_MESSAGES[3]]
    encoded = encode(Encoder(tokenizer_for("chatml"), frozenset(), str(template)), messages)
    assert isinstance(encoded, DataError)
    assert "rewrites the reply" in encoded.message


def test_an_end_token_that_swallows_white_space_keeps_the_mask_exact() -> None:
    from tokenizers import AddedToken

    tokenizer = tiny_tokenizer()
    markers = [AddedToken(name, rstrip=True, special=True) for name in ("<|end|>", "<|assistant|>", "<|user|>")]
    tokenizer.add_special_tokens({"additional_special_tokens": markers})
    encoder = Encoder(tokenizer, frozenset(), "phi3")
    assert trained_texts(encoder, good(encoder, TWO_TURNS)) == ["a1<|end|>", "a2<|end|>"]


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
    trained = encoded.token_ids[encoded.loss_mask.astype(bool)].tolist()
    assert tokenizer.convert_ids_to_tokens(trained) == ["\u2581yes", "\u2581no", "</s>"]


def test_a_template_must_fit_the_tokenizer() -> None:
    with fails("unknown-template"):
        Encoder(tiny_tokenizer(), frozenset(), "llama3")
    with fails("unknown-template") as error:
        Encoder(tiny_tokenizer(), frozenset(), "chatm")
    assert "chatml" in str(error.value)
    bare = tiny_tokenizer()
    bare.chat_template = None
    with fails("unknown-template"):
        Encoder(bare, frozenset(), "auto")
