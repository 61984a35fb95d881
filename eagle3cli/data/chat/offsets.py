"""Token ids and the place of each token in the text.

The tokenizer's own offsets cost a fifth of the time that tokenizing takes. With a byte-level vocabulary they are not
needed: where the tokens' bytes one after the other are the text's bytes, their lengths say where each one stands. That
is checked for every text; one that does not pass (normalised, white space swallowed) gets the tokenizer's own offsets,
as does every text of a tokenizer of another kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

SAMPLE_TEXT = " a  bc\n\n d\té😀{} e '1,23"
"""White space, several bytes a character, and a special token: what offsets may differ in."""


@dataclass(frozen=True)
class Tokens:
    """Tokens of a text, with the interface of the `tokenizers` encodings as far as masks need it."""

    ids: npt.NDArray[np.int32]
    starts: npt.NDArray[np.int64]
    """First character of each token."""
    ends: npt.NDArray[np.int64]
    """The character behind each token; one of which only some bytes are in the token counts whole."""

    def token_to_chars(self, index: int) -> tuple[int, int]:
        """First character of a token and the one behind it."""
        return int(self.starts[index]), int(self.ends[index])

    def char_to_token(self, position: int) -> int | None:
        """The first token that holds some of a character; None behind the text's end."""
        index = int(np.searchsorted(self.ends, position, side="right"))
        return index if index < len(self.ids) else None


def tokenize(tokenizer: Any, texts: Sequence[str]) -> list[Any]:
    """Tokens of rendered texts (special tokens are in the text already): :class:`Tokens`, or the `tokenizers` encoding
    with the same methods."""
    backend = tokenizer.backend_tokenizer
    table = _table(tokenizer)
    if table is None:
        return list(backend.encode_batch(list(texts), add_special_tokens=False))
    tokens = []
    for text, encoding in zip(texts, backend.encode_batch_fast(list(texts), add_special_tokens=False), strict=True):
        placed = table.tokens(text, encoding.ids)
        tokens.append(backend.encode(text, add_special_tokens=False) if placed is None else placed)
    return tokens


class _Table:
    """The bytes of every token of a byte-level vocabulary."""

    def __init__(self, tokenizer: Any) -> None:
        vocab = tokenizer.get_vocab()
        self.size = len(vocab)
        self.bytes = [b""] * (1 + max(vocab.values(), default=0))
        characters = _bytes_of_characters()
        for token, number in vocab.items():
            try:
                self.bytes[number] = token.translate(characters).encode("latin-1")
            except UnicodeEncodeError:  # not of this alphabet: texts with it fail the check
                continue
        for number, token in tokenizer.added_tokens_decoder.items():
            self.bytes[number] = token.content.encode()
        self.lengths = np.array([len(content) for content in self.bytes], dtype=np.int64)

    def tokens(self, text: str, ids: list[int]) -> Tokens | None:
        """The tokens with their places, or None where their bytes are not the text's."""
        raw = text.encode()
        if b"".join([self.bytes[i] for i in ids]) != raw:
            return None
        numbers = np.fromiter(ids, dtype=np.int32, count=len(ids))
        ends = np.cumsum(self.lengths[numbers])
        starts = ends - self.lengths[numbers]
        if len(raw) != len(text) and len(ids):
            # Number of the character that each byte belongs to: those that are no continuation begin one.
            character = np.cumsum((np.frombuffer(raw, dtype=np.uint8) & 0xC0) != 0x80) - 1
            starts = character[starts]
            ends = character[ends - 1] + 1
        return Tokens(numbers, starts, ends)


_tables: WeakKeyDictionary[Any, _Table | None] = WeakKeyDictionary()


def _table(tokenizer: Any) -> _Table | None:
    """The tokenizer's table, made once; None where its offsets are not what the bytes say."""
    table = _tables.get(tokenizer)
    if tokenizer not in _tables or (table is not None and table.size != len(tokenizer)):
        table = _Table(tokenizer)
        _tables[tokenizer] = table = table if _agrees(tokenizer, table) else None
    return table


def _agrees(tokenizer: Any, table: _Table) -> bool:
    text = SAMPLE_TEXT.format(tokenizer.eos_token or "")
    encoding = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    tokens = table.tokens(text, encoding.ids)
    return tokens is not None and encoding.offsets == list(
        zip(tokens.starts.tolist(), tokens.ends.tolist(), strict=True)
    )


def _bytes_of_characters() -> dict[int, int]:
    """The byte that each character of a byte-level vocabulary stands for: printable ones for themselves, the others
    for what is left, in order from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    rest = [byte for byte in range(256) if byte not in printable]
    return {byte: byte for byte in printable} | {256 + i: byte for i, byte in enumerate(rest)}
