"""Conversations to token rows whose mask covers exactly what the target writes."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from eagle3cli.data.conversations import Conversation
from eagle3cli.data.rows import Ids, Mask, TokenRow
from eagle3cli.data.spans import Format, Messages, Rendered, find_replies, learn_format
from eagle3cli.data.tokenizer import eos_ids, render, tokenize, turn_end_ids
from eagle3cli.errors import DataError

NO_SPAN = "No assistant response spans found in the conversation text."
"""The warning that users know, for a row that trains nothing."""


@dataclass(frozen=True)
class Encoded:
    """A token row and what happened on the way."""

    row: TokenRow
    truncated: bool
    """Cut at the maximum length."""

    @property
    def no_span(self) -> bool:
        """Nothing in the row is trained."""
        return not self.row.loss_mask.any()


@dataclass
class Encoder:
    """Encodes with one tokenizer and template. ``end_ids`` are the tokens that end a turn."""

    tokenizer: Any
    end_ids: frozenset[int]
    chat_template: str = "auto"
    max_length: int = 2048
    last_turn_only: bool = False
    format: Format = field(init=False)
    _special: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        self._special = frozenset(self.tokenizer.added_tokens_decoder)
        ends = self.end_ids | turn_end_ids(self.tokenizer, self.chat_template)
        self.format = learn_format(self._render, [self.tokenizer.convert_ids_to_tokens(i) or "" for i in sorted(ends)])

    def _render(self, messages: Messages, opened: bool) -> str:
        return render(self.tokenizer, messages, chat_template=self.chat_template, generation_prompt=opened)

    def encode(self, conversations: Sequence[Conversation]) -> list[Encoded | DataError]:
        """Token rows in order; a row that cannot be encoded exactly is the DataError that says why."""
        return self._encode(
            [conversation.id for conversation in conversations], [self._rendered(c) for c in conversations]
        )

    def encode_text(self, texts: Sequence[tuple[str, str]]) -> list[Encoded | DataError]:
        """Token rows of pre-formatted (id, text) pairs, whose replies follow the template's own header."""
        return self._encode([name for name, _ in texts], [self._preformatted(text) for _, text in texts])

    def _rendered(self, conversation: Conversation) -> Rendered | DataError:
        replies = [i for i, message in enumerate(conversation.messages) if message["role"] == "assistant"]
        ended = zip(replies, conversation.finish, strict=False)
        cut = frozenset(index for index, reason in ended if reason == "length")
        try:
            return find_replies(
                self._render, conversation.messages, self.format, cut=cut, last_only=self.last_turn_only
            )
        except DataError as error:
            return error

    def _preformatted(self, text: str) -> Rendered:
        replies: list[tuple[int, int]] = []
        turns = [(0, "user")] if text else []
        for match in re.finditer(re.escape(self.format.header), text):
            if replies and match.start() < replies[-1][1]:
                continue
            end = self.format.first_end(text, match.end())
            stop = len(text) if end is None else self.format.end_at(text, end)
            replies.append((match.end(), stop))
            turns += [(match.start(), "assistant"), (stop, "user")]
        if self.last_turn_only:
            replies = replies[-1:]
        return Rendered(text, tuple(replies), tuple(turn for turn in turns if turn[0] < len(text)))

    def _encode(self, names: list[str], rendered: list[Rendered | DataError]) -> list[Encoded | DataError]:
        good = [item for item in rendered if isinstance(item, Rendered)]
        encodings = iter(tokenize(self.tokenizer, [item.text for item in good]))
        result: list[Encoded | DataError] = []
        for name, item in zip(names, rendered, strict=True):
            if isinstance(item, DataError):
                result.append(item)
                continue
            try:
                result.append(self._row(name, item, next(encodings)))
            except DataError as error:
                result.append(error)
        return result

    def _row(self, name: str, item: Rendered, encoding: Any) -> Encoded:
        ids: Ids = np.array(encoding.ids, dtype=np.int32)
        mask: Mask = np.zeros(len(ids), dtype=np.uint8)
        for start, end in item.replies:
            first, last = token_range(encoding, item.text, start, end, lambda i: int(ids[i]) in self._special)
            mask[first:last] = 1
        kept = self.max_length
        turns = tuple(
            (at, role)
            for start, role in item.turns
            if (at := _token_at(encoding, item.text, start)) < min(kept, len(ids))
        )
        row = TokenRow(name, ids[:kept], mask[:kept], turns=turns)
        return Encoded(row, truncated=len(ids) > kept)


def make_encoder(
    tokenizer: Any, model_path: str, *, chat_template: str, max_length: int, last_turn_only: bool
) -> Encoder:
    """The encoder for a target; its end tokens come from the target's configuration."""
    return Encoder(tokenizer, eos_ids(tokenizer, model_path), chat_template, max_length, last_turn_only)


def _token_at(encoding: Any, text: str, position: int) -> int:
    """First token that holds a character at or after ``position``; the number of tokens where there is none."""
    for at in range(position, len(text)):
        token = encoding.char_to_token(at)
        if token is not None:
            return int(token)
    return len(encoding.ids)


def token_range(encoding: Any, text: str, start: int, end: int, is_special: Any) -> tuple[int, int]:
    """Tokens ``[first, last)`` of the characters ``[start, end)``.

    Raises DataError where a token lies across an edge: the target could not have written it there.
    """
    first, last = _token_at(encoding, text, start), _token_at(encoding, text, end)
    if start == end:
        return first, first
    if first < len(encoding.ids) and encoding.token_to_chars(first)[0] < start:
        raise DataError(
            "a token lies across the start of a reply (header and reply merge), so the mask cannot be exact"
        )
    if last < len(encoding.ids) and (left := encoding.token_to_chars(last)[0]) < end:
        # An end token may swallow the white space behind it; any other token across the edge is inexact.
        if not (is_special(last) and not text[end : encoding.token_to_chars(last)[1]].strip() and left >= start):
            raise DataError("a token lies across the end of a reply, so the mask cannot be exact")
        last += 1
    return first, last
