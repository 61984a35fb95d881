"""Rows that look odd to an encoder and are good all the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken

from eagle3cli.data.conversations.conversation import Conversation, to_conversation
from eagle3cli.data.tokens.encode import Encoder
from eagle3cli.errors import DataError
from tests.data.chat.formats import Message
from tests.data.chat.grammars import CHAIN, ONE, QUESTION, TOOLS, TWO, by_role, call, encoded, encoder, result, shown
from tests.tiny import tiny_tokenizer

PROMPT = "<|im_start|>bot\n"
USER = "<|im_start|>user\nCONTENT<|im_end|>\n"
REPLY = "<|im_start|>bot\nCONTENT<|im_end|>\n"
CALLS = "{% for c in m.tool_calls or [] %}<call>{{ c.function | tojson }}</call>{% endfor %}"
LOOKS = "{% if 'never' in m.content %}!{% endif %}"
"""A template that looks into replies is asked in another way than by placeholders."""


def test_steps_of_a_chain_whose_past_has_other_white_space() -> None:
    """Hermes' way: a line break more behind a tool's result than a server's prompt has."""
    template = by_role(
        "{% if messages[-1].role == 'tool' %}<|im_end|>{% endif %}" + PROMPT,
        user=USER,
        tool="<|im_start|>tool\nCONTENT{% if not loop.last %}{{ '\\n' }}<|im_end|>{% endif %}",
        assistant="<|im_start|>bot\n" + CALLS + "CONTENT<|im_end|>\n",
    )
    text = shown(encoder(template), CHAIN, *TOOLS)
    assert text.count("bot\n«<call>") == 2
    assert text.endswith("t2<|im_end|><|im_start|>bot\n«a3<|im_end|>»")


def test_steps_of_a_chain_in_one_turn() -> None:
    """Apertus' way: the past shows no header behind a tool's result, and no end of a call; a prompt has the header."""
    tokens = ("<|bot|>", "<|user|>", "<|end|>")
    template = by_role(
        "<|bot|>",
        user="<|user|>CONTENT<|end|>",
        tool="[CONTENT]",
        assistant="{% if loop.index0 == 0 or messages[loop.index0 - 1].role != 'tool' %}<|bot|>{% endif %}"
        + "CONTENT"
        + CALLS
        + "{% if not m.tool_calls %}<|end|>{% endif %}",
    )
    text = shown(encoder(template, *tokens, eos="<|end|>"), CHAIN, *TOOLS)
    assert text.startswith("<|user|>q1<|end|><|bot|>«<call>")
    assert "[t1]«<call>" in text
    assert text.endswith("</call>»[t2]<|bot|>«a3<|end|>»")


def test_a_chain_whose_past_closes_the_block_that_a_prompt_skips() -> None:
    """DeepSeek V3.2's way: `<think></think>` in a prompt, `</think>` in the past, behind tool results, too."""
    tokens = ("<|bot|>", "<|user|>", "<|end|>", "<think>", "</think>")
    template = by_role(
        "{% if messages[-1].role == 'user' %}<|bot|>{% endif %}<think></think>",
        user="<|user|>CONTENT",
        tool="[CONTENT]",
        assistant="{% if messages[loop.index0 - 1].role == 'user' %}<|bot|>{% endif %}</think>"
        + CALLS
        + "CONTENT<|end|>",
    )
    text = shown(encoder(template, *tokens, eos="<|end|>"), CHAIN, *TOOLS)
    assert text.startswith("<|user|>q1<|bot|></think>«<call>")
    assert "<|end|>»[t1]</think>«<call>" in text
    assert text.endswith("<|end|>»[t2]<think></think>«a3<|end|>»")


@pytest.mark.parametrize("look", ["", LOOKS])
def test_two_replies_in_a_row(look: str) -> None:
    template = by_role(PROMPT, user=USER, assistant=look + REPLY)
    text = shown(encoder(template), [*ONE, {"role": "assistant", "content": "a2"}, *TWO])
    assert text.count("bot\n«a1<|im_end|>»\n") == 2
    assert text.count("bot\n«a2<|im_end|>»\n") == 2


@pytest.mark.parametrize("order", ["call last", "call first"])
def test_a_reply_and_a_call_in_a_row(order: str) -> None:
    template = by_role(
        PROMPT,
        user=USER,
        tool="<|im_start|>tool\nCONTENT<|im_end|>\n",
        assistant=PROMPT + CALLS + "CONTENT<|im_end|>\n",
    )
    said: Message = {"role": "assistant", "content": "I look."}
    run = [said, call(1), result(1)] if order == "call last" else [call(1), said]
    text = shown(encoder(template), [*QUESTION, *run, *ONE], *TOOLS)
    assert "bot\n«I look.<|im_end|>»\n" in text
    assert 'bot\n«<call>{"name": "look"' in text
    assert text.endswith("bot\n«a1<|im_end|>»\n")


def test_white_space_that_the_template_collapses() -> None:
    template = by_role(PROMPT, user=USER, assistant=REPLY).replace("m.content }}", "m.content.split() | join(' ') }}")
    messages = [{"role": "user", "content": "q  1"}, {"role": "assistant", "content": "a  \n\n 1"}]
    text = shown(encoder(template), [*messages, *messages])
    assert text.count("user\nq 1<|im_end|>\n<|im_start|>bot\n«a 1<|im_end|>»") == 2


def test_a_reply_that_the_template_rewrites_is_still_refused() -> None:
    template = by_role(PROMPT, user=USER, assistant=REPLY).replace("m.content }}", "m.content | upper }}")
    row = encoder(template).encode([Conversation("row", tuple(ONE))])[0]
    assert isinstance(row, DataError)


def test_a_past_reply_that_says_nothing_and_is_left_out() -> None:
    template = by_role(PROMPT, user=USER, assistant="{% if m.content %}" + REPLY + "{% endif %}")
    empty: Message = {"role": "assistant", "content": ""}
    coder = encoder(template)
    assert shown(coder, [*QUESTION, empty, *ONE]).endswith("bot\n«a1<|im_end|>»\n")
    assert shown(coder, [*QUESTION, empty]).endswith("q1<|im_end|>\n<|im_start|>bot\n«<|im_end|>»")


def _swallowing() -> Encoder:
    tokenizer = tiny_tokenizer()
    names = ("<|bot|>", "<|user|>", "<|end|>")
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken(n, rstrip=True, special=True) for n in names]}
    )
    tokenizer.eos_token = "<|end|>"
    tokenizer.chat_template = by_role(
        "<|bot|>\n", user="<|user|>\nCONTENT<|end|>\n", assistant="<|bot|>\nCONTENT<|end|>\n"
    )
    return Encoder(tokenizer, frozenset(tokenizer.convert_tokens_to_ids(["<|end|>"])))


def test_a_reply_that_begins_with_white_space_behind_a_token_that_swallows_it() -> None:
    """A server tokenizes the prompt alone, where the token swallows the prompt's own line break and no more."""
    coder = _swallowing()
    said = [{"role": "user", "content": "q1"}, {"role": "assistant", "content": "\n\nHello"}]
    row = encoded(coder, [*said, *said])
    trained = row.token_ids[row.loss_mask.astype(bool)].tolist()
    assert coder.tokenizer.decode(trained) == "Hello<|end|>\n\nHello<|end|>"
    prompt = coder.tokenizer.apply_chat_template([*said, said[0]], add_generation_prompt=True, tokenize=False)
    served = coder.tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert row.token_ids[: len(served)].tolist() == served


def _joining(tokens: tuple[tuple[str, str], ...]) -> Any:
    """A tokenizer of single bytes that merges these pairs."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {text: i for i, text in enumerate([*letters, *(a + b for a, b in tokens)])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=list(tokens)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>")


LINE = by_role("Bot:", user="User:CONTENT\n", assistant="Bot:CONTENT\n\n")


def test_a_token_across_the_end_of_a_past_reply() -> None:
    """A server's prompt shows it so, and the target did not write it; at the end of the row stands eos."""
    tokenizer = _joining((("Ċ", "Ċ"), (".", "ĊĊ")))
    tokenizer.chat_template = LINE
    coder = Encoder(tokenizer, frozenset({tokenizer.eos_token_id}))
    said = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "Hi."}]
    assert shown(coder, [*said, *said]) == "User:q\nBot:«Hi».\n\nUser:q\nBot:«Hi.</s>»"
    row = encoded(coder, [*said, *said])
    served = tokenizer("User:q\nBot:Hi.\n\nUser:q\nBot:", add_special_tokens=False)["input_ids"]
    assert row.token_ids[: len(served)].tolist() == served
    cut = encoded(coder, said, finish=("length",))
    assert tokenizer.decode(cut.token_ids[cut.loss_mask.astype(bool)].tolist()) == "Hi."


def test_an_edge_behind_the_cut_does_not_matter() -> None:
    """The tokenizer begins every text with a space, so that no reply can be told from its header exactly."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["▁", "▁q", "▁a", "Bot:", "▁Bot:x", "User:", "▁User:", "<unk>", "</s>"]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    tokenizer.chat_template = by_role(" Bot:", user=" User: CONTENT", assistant=" Bot:CONTENT")
    messages = [{"role": "user", "content": "q " * 20}, {"role": "assistant", "content": "x a"}]
    whole = Encoder(tokenizer, frozenset(), max_length=4096).encode([Conversation("row", tuple(messages))])[0]
    assert isinstance(whole, DataError)
    row = encoded(Encoder(tokenizer, frozenset(), max_length=8), messages)
    assert row.truncated
    assert not np.any(row.loss_mask)


PARTED = (
    "{% if m.content is string %}{{ m.content }}{% else %}{% for part in m.content %}{{ part.text }}"
    "{% if not loop.last %}JOINT{% endif %}{% endfor %}{% endif %}"
)


@pytest.mark.parametrize("joint", ["", " ", "{{ '\\n\\n' }}"])
def test_a_content_of_several_parts_is_what_the_template_makes_of_it(joint: str) -> None:
    content = PARTED.replace("JOINT", joint)
    template = by_role(PROMPT, user=USER, assistant=REPLY).replace("{{ m.content }}", content)
    coder = encoder(template)
    raw = [{"role": m["role"], "content": [{"type": "text", "text": m["content"]}, {"text": "x"}]} for m in ONE]
    conversation = to_conversation({"id": "row", "conversations": raw})
    assert conversation == to_conversation(conversation.to_row())
    served = coder.tokenizer.apply_chat_template(raw, tokenize=False)
    text = shown(coder, list(conversation.messages))
    assert text.replace("«", "").replace("»", "") == served
    assert "«a1" in text


def test_several_parts_for_a_template_that_takes_text_only() -> None:
    template = by_role(PROMPT, user=USER, assistant=REPLY).replace("m.content }}", "m.content.strip() }}")
    raw = [{"role": "user", "content": ["q1", "q2"]}, ONE[1]]
    messages = list(to_conversation({"conversations": raw}).messages)
    assert "user\nq1\nq2<|im_end|>" in shown(encoder(template), messages)
