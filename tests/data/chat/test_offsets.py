from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.data.chat import offsets
from eagle3cli.data.chat.offsets import Tokens, tokenize
from tests.tiny import END, START, TEXT, tiny_tokenizer

WORDS = st.sampled_from(
    [*TEXT, START, END, " ", "  ", "\n", "\t", "é", "e\u0301", "😀", "你好", "\u2028", "'s", "12", "a"]
)


@lru_cache
def tokenizer_for(kind: str) -> Any:
    """plain; trimmed: its offsets leave white space out; nfc: text is normalised; swallowing: END takes white space;
    words: no byte-level vocabulary."""
    from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    if kind == "words":
        words = {word: i for i, word in enumerate(["[UNK]", "a", "12", END])}
        model = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
        model.pre_tokenizer = pre_tokenizers.Whitespace()
        return PreTrainedTokenizerFast(tokenizer_object=model, eos_token=END)
    tokenizer = tiny_tokenizer()
    backend = tokenizer.backend_tokenizer
    if kind == "trimmed":
        backend.post_processor = processors.ByteLevel(trim_offsets=True)
    elif kind == "nfc":
        backend.normalizer = normalizers.NFC()
    elif kind == "swallowing":
        backend.add_special_tokens([AddedToken("<|tool|>", rstrip=True, special=True)])
    return tokenizer


@pytest.mark.parametrize("kind", ["plain", "trimmed", "nfc", "swallowing", "words"])
@given(words=st.lists(WORDS, max_size=12), at=st.integers(0, 40))
def test_the_places_are_the_tokenizers_own(kind: str, words: list[str], at: int) -> None:
    text = "".join([*words, "<|tool|> \n " if kind == "swallowing" else ""])
    tokenizer = tokenizer_for(kind)
    (found,) = tokenize(tokenizer, [text])
    own = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    assert list(found.ids) == own.ids
    assert [found.token_to_chars(i) for i in range(len(own.ids))] == own.offsets
    assert found.char_to_token(at) == own.char_to_token(at)


def test_the_tokenizers_own_offsets_are_asked_for_only_where_bytes_do_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def kinds(kind: str, *texts: str) -> list[bool]:
        return [isinstance(found, Tokens) for found in tokenize(tokenizer_for(kind), texts)]

    assert kinds("plain", "a 😀", "", f"{START}user\n é{END}") == [True, True, True]
    assert kinds("nfc", "e\u0301", "é") == [False, True]
    assert kinds("swallowing", "<|tool|> a", "<|tool|>a") == [False, True]
    assert kinds("trimmed", "a") == kinds("words", "a") == [False]


def test_tokens_added_later_are_known() -> None:
    tokenizer = tiny_tokenizer()
    assert len(tokenize(tokenizer, ["a<|new|>"])[0].ids) > 2
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|new|>"]})
    (found,) = tokenize(tokenizer, ["a<|new|>"])
    assert (len(found.ids), found.token_to_chars(1)) == (2, (1, 8))
    assert isinstance(found, Tokens)


def test_a_wrong_table_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(offsets, "_bytes_of_characters", lambda: {i: 255 - i for i in range(256)})
    assert not isinstance(tokenize(tiny_tokenizer(), ["some text"])[0], Tokens)
