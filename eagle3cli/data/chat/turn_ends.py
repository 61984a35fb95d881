"""Where replies end: the tokens at which the target stops, told by its configuration, its tokenizer and its template.

A configured stop (generation_config.json, config.json, the tokenizer's eos) that the template writes behind a reply
ends it, with all that stands before that stop: closing tokens in a row are the target's. Where the template writes none
of them, the special tokens that close a reply do. A token that opens the next speaker's turn closes nothing, unless it
is a configured stop. Where nothing closes a reply, the target ends it with eos: a row shows that behind the last reply
only, as a server's prompt has nothing behind the earlier ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix


@dataclass(frozen=True)
class Seams:
    """What a template writes between the texts of a plain conversation."""

    lead: str
    """Before the first question."""
    opening: str
    """Between a question and what the target writes, in a server's prompt."""
    again: str
    """Between a reply and the next question; "" where the template takes only one turn."""
    tail: str
    """Behind the last reply."""
    always_open: bool
    """A reply's header stands behind every conversation, asked for or not."""


@dataclass(frozen=True)
class TurnEnds:
    """What ends replies, white space before it apart."""

    past: str
    """Behind a reply that others follow; "" where the template writes no end."""
    last: str
    """Behind the last reply; "" where the template writes no end."""
    stops: tuple[str, ...]
    """Tokens at which the target stops: the configured ones, and what ends a last reply."""
    unwritten: str
    """What the target writes behind a last reply that the template ends with nothing."""
    unended: bool
    """The template ends no earlier reply, so that ``unwritten`` stands behind a tool call, too; where it ends some,
    another token may follow a call."""


def learn_turn_ends(seams: Seams, special: Sequence[str], configured: Sequence[str], eos: str = "") -> TurnEnds:
    """The ends of replies; ``special`` are the tokenizer's special tokens, ``configured`` those that stop the target.

    ``eos`` is the token that ends a reply where the template writes no end.
    """
    tokens = tuple(sorted({token for token in (*special, *configured) if token}, key=len, reverse=True))
    stops = tuple(stop for stop in configured if stop)
    past = _past(seams, tokens, stops)
    last = _last(seams, tokens, stops, past)
    own = _last_token(last or past, tokens)
    stops = tuple(dict.fromkeys((*stops, own))) if own else stops
    unwritten = "" if last else past if past and past.endswith(stops) else eos
    return TurnEnds(past, last, stops, unwritten, unended=not past)


def _past(seams: Seams, tokens: Sequence[str], stops: Sequence[str]) -> str:
    text = seams.again.lstrip()
    if stopped := _through_first(text, stops):
        return stopped
    if not seams.always_open:
        shared = _whole_tokens(commonprefix([text, seams.tail.lstrip()]), text, tokens)
        if closing := _through_last(shared, tokens):
            return closing
    first = _leading(text, tokens)
    closes = seams.opening.lstrip().startswith(first) or not _opens(first, text, seams.lead)
    return first if first and closes else ""


def _last(seams: Seams, tokens: Sequence[str], stops: Sequence[str], past: str) -> str:
    text = seams.tail.lstrip()
    if past and text.startswith(past):
        return past
    if stopped := _through_first(text, stops):
        return stopped
    if seams.always_open:
        text = text[: len(text) - len(common_suffix(text, seams.opening))]
    return _leading(text, tokens)


def _opens(token: str, text: str, lead: str) -> bool:
    """Whether the token at the start of ``text`` is the start of the next question's header."""
    return bool(token) and len(common_suffix(text, lead)) >= len(text)


def _through_first(text: str, tokens: Sequence[str]) -> str:
    """The text up to the end of the first of these tokens; "" where it holds none."""
    places = [(at, -len(token)) for token in tokens if (at := text.find(token)) >= 0]
    if not places:
        return ""
    at, length = min(places)
    return text[: at - length]


def _through_last(text: str, tokens: Sequence[str]) -> str:
    """The text up to the end of the last of these tokens; "" where it holds none."""
    return text[: max((text.rfind(token) + len(token) for token in tokens if token in text), default=0)]


def _whole_tokens(prefix: str, text: str, tokens: Sequence[str]) -> str:
    """``prefix`` of ``text``, without a token that it holds only in part."""
    for token in tokens:
        at = text.rfind(token, 0, len(prefix) + len(token))
        if at >= 0 and at < len(prefix) < at + len(token):
            prefix = prefix[:at]
    return prefix


def _last_token(text: str, tokens: Sequence[str]) -> str:
    return next((token for token in tokens if text.endswith(token)), "")


def _leading(text: str, tokens: Sequence[str]) -> str:
    """The special token with which ``text`` begins, white space apart."""
    start = text.lstrip()
    return next((token for token in tokens if start.startswith(token)), "")


def common_suffix(a: str, b: str) -> str:
    """The longest text with which both end."""
    return commonprefix([a[::-1], b[::-1]])[::-1]
