"""Conversations to token rows whose mask covers exactly what the target writes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from eagle3cli.data.chat.format import Format, learn_format
from eagle3cli.data.chat.offsets import tokenize
from eagle3cli.data.chat.preformatted import ReplyDelimiters, find_replies_in_text
from eagle3cli.data.chat.reply_spans import Rendered, find_replies
from eagle3cli.data.chat.template import Chat
from eagle3cli.data.chat.tokenizer import stop_texts
from eagle3cli.data.conversations.conversation import Conversation
from eagle3cli.data.conversations.system_prompt import with_system
from eagle3cli.data.images.processor import Expansion, ImageProcessor
from eagle3cli.data.images.reference import ImageRef
from eagle3cli.data.tokens.lengths import count_kept
from eagle3cli.data.tokens.rows import Ids, Mask, TokenRow
from eagle3cli.errors import DataError

NO_SPAN = "No assistant response spans found in the conversation text."
"""The warning that users know, for a row that trains nothing."""

_LEAD_TOKENS = 8
"""Tokens before a seam that show whether the text behind it goes on from them."""


@dataclass
class Encoder:
    """Encodes with one tokenizer and template. ``end_ids`` are the tokens that end a turn."""

    tokenizer: Any
    end_ids: frozenset[int]
    chat_template: str = "auto"
    max_length: int = 2048
    last_turn_only: bool = False
    system_prompt: str | None = None
    """Replaces each row's own."""
    text_marks: ReplyDelimiters | None = None
    """What stands around replies in pre-formatted rows, where it is not the template's."""
    chat_options: Mapping[str, Any] = field(default_factory=dict)
    """Values that the chat template reads."""
    image_processor: ImageProcessor | None = None
    """Says which tokens the images of a row are."""
    format: Format = field(init=False)
    _chat: Chat | None = field(init=False)
    _special: frozenset[int] = field(init=False)

    def __post_init__(self) -> None:
        self._special = frozenset(self.tokenizer.added_tokens_decoder)
        if self.text_marks is not None:
            self._chat = None
            self.format = self.text_marks.as_format()
            return
        self._chat = Chat(self.tokenizer, self.chat_template, self.chat_options)
        self.format = learn_format(self._chat, *stop_texts(self.tokenizer, self.end_ids))

    def encode(self, conversations: Sequence[Conversation]) -> list[TokenRow | DataError]:
        """Token rows in order; a row that cannot be encoded exactly is the DataError that says why."""
        return self._encode(
            [conversation.id for conversation in conversations], [self._rendered(c) for c in conversations]
        )

    def encode_text(self, texts: Sequence[tuple[str, str]]) -> list[TokenRow | DataError]:
        """Token rows of pre-formatted (id, text) pairs, whose replies follow the template's own header."""
        return self._encode([name for name, _ in texts], [self._preformatted(text) for _, text in texts])

    def _rendered(self, conversation: Conversation) -> _Pictured | Rendered | DataError:
        assert self._chat is not None
        messages = conversation.messages
        if self.system_prompt is not None:
            messages = tuple(with_system(messages, self.system_prompt))
        replies = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
        ended = zip(replies, conversation.finish, strict=False)
        cut = frozenset(index for index, reason in ended if reason == "length")
        try:
            rendered = find_replies(
                self._chat, messages, self.format, tools=conversation.tools, cut=cut, last_only=self.last_turn_only
            )
            return self._with_images(rendered, conversation.images) if conversation.images else rendered
        except DataError as error:
            return error
        except RecursionError:
            return DataError("row-text", "nested too deeply")

    def _with_images(self, rendered: Rendered, images: tuple[ImageRef, ...]) -> _Pictured:
        """The rendering with all tokens of its images; raises DataError where the target takes none."""
        if self.image_processor is None:
            raise DataError("images-unsupported", "the row has images, and the target takes text alone")
        expansion = self.image_processor.expand(rendered.text, images)
        place = expansion.place
        replies = tuple((place(start), place(end)) for start, end in rendered.replies)
        turns = tuple((place(start), role) for start, role in rendered.turns)
        return _Pictured(Rendered(expansion.text, replies, turns), expansion, images)

    def _preformatted(self, text: str) -> Rendered:
        until_user = self.text_marks is not None or self.format.unended  # the template ends no reply
        return find_replies_in_text(text, self.format, until_user=until_user, last_only=self.last_turn_only)

    def _encode(
        self, names: list[str], rendered: Sequence[_Pictured | Rendered | DataError]
    ) -> list[TokenRow | DataError]:
        renderings = [_text_of(item) for item in rendered if not isinstance(item, DataError)]
        encodings = iter(tokenize(self.tokenizer, [item.text for item in renderings]))
        result: list[TokenRow | DataError] = []
        for name, item in zip(names, rendered, strict=True):
            if isinstance(item, DataError):
                result.append(item)
                continue
            try:
                result.append(self._row(name, item, *self._pieces(_text_of(item), next(encodings))))
            except DataError as error:
                result.append(error)
        return result

    def _pieces(self, item: Rendered, encoding: Any) -> tuple[list[_Piece], list[tuple[int, int]]]:
        """The row's text as it is tokenized, and the tokens of each reply; raises DataError where there is no exact
        mask."""
        try:
            pieces = [_Piece(encoding, item.text, 0)]
            ranges = self._ranges(pieces, item)
            self._check_space(encoding, item)
        except DataError:
            # Prompt and last reply merged into one token, which the target, given the prompt, could not have written
            # (or white space at the prompt's end was split for the reply): tokenize both apart, as a server does.
            pieces = self._apart(item, encoding)
            ranges = self._ranges(pieces, item)
        return pieces, ranges

    def _row(
        self, name: str, item: _Pictured | Rendered, pieces: list[_Piece], ranges: list[tuple[int, int]]
    ) -> TokenRow:
        text = _text_of(item)
        ids: Ids = np.concatenate([np.array(piece.encoding.ids, dtype=np.int32) for piece in pieces])
        mask: Mask = np.zeros(len(ids), dtype=np.uint8)
        for first, last in ranges:
            mask[first:last] = 1
        length = min(self.max_length, len(ids))
        images: tuple[ImageRef, ...] = ()
        if isinstance(item, _Pictured):
            length, images = item.within(length, pieces)
        turns = [(_find(pieces, start), role) for start, role in text.turns]
        return TokenRow(
            name,
            ids[:length],
            mask[:length],
            turns=tuple(turn for turn in turns if turn[0] < length),
            truncated=len(ids) > length,
            images=images,
            kept=count_kept(len(ids), ranges, self.max_length),
        )

    def _check_space(self, encoding: Any, item: Rendered) -> None:
        """Raise DataError where a prompt that ends with several white space characters has other tokens there than the
        row: many tokenizers leave the last of them to the word behind."""
        if not item.replies:
            return
        start, end = item.replies[-1]
        space = start - len(item.text[:start].rstrip())
        if space < 2 or start == end or not _is_last(item, end):
            return
        whole = _Piece(encoding, item.text, 0)
        first = max(0, whole.token_at(start - space) - 1)
        alone = tokenize(self.tokenizer, [item.text[encoding.token_to_chars(first)[0] : start]])[0]
        if list(alone.ids) != list(encoding.ids[first : whole.token_at(start)]):
            raise DataError("row-text", "a prompt's last white space has other tokens before a reply")

    def _apart(self, item: Rendered, whole: Any) -> list[_Piece]:
        cuts = sorted({0, *item.replies[-1], len(item.text)})
        texts = [item.text[a:b] for a, b in pairwise(cuts)]
        pieces = []
        at = 0
        for text, encoding in zip(texts, tokenize(self.tokenizer, texts), strict=True):
            pieces.append(_Piece(encoding, text, at))
            at += len(text)
        ids = [i for piece in pieces for i in piece.encoding.ids]
        if self.tokenizer.decode(ids) != self.tokenizer.decode(whole.ids) and not self._joins(pieces):
            raise DataError(
                "mask-inexact", "a token lies across the start of a reply (header and reply merge): no exact mask"
            )
        return pieces

    def _joins(self, pieces: list[_Piece]) -> bool:
        """Whether the pieces' tokens one after the other say what each piece's say alone. A tokenizer that begins every
        text with a space adds what nobody wrote; what a token of the header swallows, no reply lacks."""
        decode = self.tokenizer.decode
        for before, piece in pairwise(pieces):
            lead = list(before.encoding.ids)[-_LEAD_TOKENS:]
            if decode([*lead, *piece.encoding.ids]) != decode(lead) + decode(piece.encoding.ids):
                return False
        return True

    def _ranges(self, pieces: list[_Piece], item: Rendered) -> list[tuple[int, int]]:
        ranges = []
        for start, end in item.replies:
            before = 0
            for piece in pieces:
                if piece.at <= start < piece.at + max(1, len(piece.text)):
                    limit = self.max_length - before
                    span = (start - piece.at, min(end - piece.at, len(piece.text)))
                    first, last = self._range(piece, span, limit, _is_last(item, end))
                    ranges.append((before + first, before + last))
                    break
                before += len(piece.encoding.ids)
        return ranges

    def _range(self, piece: _Piece, span: tuple[int, int], limit: int, is_last: bool) -> tuple[int, int]:
        """Tokens ``[first, last)`` of these characters. A token across an edge of a reply that others follow is a
        server's, whose prompt shows both sides in one; raises DataError for one of the last reply before ``limit``."""
        start, end = span
        encoding = piece.encoding
        first = piece.token_at(start)
        last = piece.token_at(end)
        if start == end:
            return first, first
        if first >= limit:
            return first, max(first, last)
        if first < len(encoding.ids) and encoding.token_to_chars(first)[0] < start:
            if is_last:
                raise DataError(
                    "mask-inexact", "a token lies across the start of a reply (header and reply merge): no exact mask"
                )
            first += 1
        if last < min(limit, len(encoding.ids)) and encoding.token_to_chars(last)[0] < end:
            # An end token may swallow the white space behind it; any other token across the edge is inexact.
            behind = piece.text[end : encoding.token_to_chars(last)[1]]
            if encoding.ids[last] in self._special and not behind.strip():
                last += 1
            elif is_last:
                raise DataError("mask-inexact", "a token lies across the end of a reply: no exact mask")
        return first, max(first, last)


def _is_last(item: Rendered, end: int) -> bool:
    """Whether the row ends with the reply that ends there."""
    closes = item.turns[-1:] and item.turns[-1][1] == "assistant"
    return end == item.replies[-1][1] and (bool(closes) or not item.text[end:].strip())


@dataclass(frozen=True)
class _Piece:
    """Text tokenized by itself, which stands ``at`` this place of the row's text."""

    encoding: Any
    text: str
    at: int

    def token_at(self, position: int) -> int:
        """First token that holds a character at or after ``position``; the number of tokens where there is none."""
        for at in range(position, len(self.text)):
            token = self.encoding.char_to_token(at)
            if token is not None:
                return int(token)
        return len(self.encoding.ids)


@dataclass(frozen=True)
class _Pictured:
    """A rendering with images, all their tokens in its text."""

    rendered: Rendered
    expansion: Expansion
    images: tuple[ImageRef, ...]

    def within(self, length: int, pieces: list[_Piece]) -> tuple[int, tuple[ImageRef, ...]]:
        """The length, at most ``length``, at which no image is cut, and the images that stand before it."""
        for number, (_, (start, end)) in enumerate(self.expansion.spans):
            if _find(pieces, end) > length:
                return min(length, _find(pieces, start)), self.images[:number]
        return length, self.images


def _text_of(item: _Pictured | Rendered) -> Rendered:
    return item.rendered if isinstance(item, _Pictured) else item


def _find(pieces: list[_Piece], position: int) -> int:
    """The row's token at a place of its text."""
    before = 0
    for piece in pieces:
        if position < piece.at + len(piece.text):
            return before + piece.token_at(position - piece.at)
        before += len(piece.encoding.ids)
    return before
