"""Contents replaced by placeholders: how a chat template is asked where it writes each of them.

A placeholder is a short text that stands nowhere else. A conversation rendered with placeholders is split at them into
pieces, which are the template's own text; `align` finds the same pieces in the real rendering, and so the contents
between them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

DELIMITERS = (("\ue000", "\ue001"), ("\uf8f0", "\uf8f1"), ("\U000f0000", "\U000f0001"))

CONTENT, REASONING, BEGIN, END, REPLY, CALL = "123456"
"""Kinds of placeholders; digits, as templates may change the case of letters."""


@dataclass(frozen=True)
class Placeholders:
    """The two characters that open and close every placeholder."""

    open: str
    close: str

    def name(self, index: int, kind: str) -> str:
        """The placeholder of message ``index``; ``kind`` is one of those above."""
        return f"{self.open}{index}:{kind}{self.close}"

    def split(self, text: str, kinds: str) -> Pieces:
        """The text split at its placeholders of these kinds."""
        parts = re.split(f"{self.open}(\\d+):([{kinds}]){self.close}", text)
        names = tuple(zip(map(int, parts[1::3]), parts[2::3], strict=True))
        return Pieces(tuple(parts[0::3]), names)


@dataclass(frozen=True)
class Pieces:
    """A rendering split at its placeholders: ``names[i]`` (message, kind) stands between ``texts[i]`` and
    ``texts[i + 1]``."""

    texts: tuple[str, ...]
    names: tuple[tuple[int, str], ...]


def unused_placeholders(text: str) -> Placeholders | None:
    """Placeholders whose characters ``text`` does not hold."""
    return next((Placeholders(*pair) for pair in DELIMITERS if pair[0] not in text and pair[1] not in text), None)


def renderings_of(content: str, *, quoted: bool = False) -> Sequence[str]:
    """How a template may write a content: whole, stripped in the usual ways, or (``quoted``) as JSON."""
    renderings = [content]
    if content[:1].isspace() or content[-1:].isspace():
        renderings += [content.strip(), content.rstrip(), content.lstrip(), content.strip("\n"), content.lstrip("\n")]
    if quoted:
        renderings += [json.dumps(content, ensure_ascii=False)[1:-1], json.dumps(content)[1:-1]]
    return list(dict.fromkeys(renderings))


Span = tuple[int, int]


def align(text: str, pieces: Sequence[str], renderings: Sequence[Sequence[str]]) -> list[Span] | None:
    """Where the contents stand in ``text``, if pieces and contents in turn give exactly that text.

    ``renderings[i]`` are the ways in which the content between ``pieces[i]`` and ``pieces[i + 1]`` may be written, the
    likeliest first.
    """
    if not text.startswith(pieces[0]):
        return None
    dead_ends: set[tuple[int, int]] = set()
    spans: list[Span] = []
    choices = [0]
    position = len(pieces[0])
    while len(spans) < len(renderings):
        number = len(spans)
        for choice in range(choices[-1], len(renderings[number])):
            end = position + len(renderings[number][choice])
            after = end + len(pieces[number + 1])
            if (
                text.startswith(renderings[number][choice], position)
                and text.startswith(pieces[number + 1], end)
                and (number + 1 < len(renderings) or after == len(text))
                and (number + 1, after) not in dead_ends
            ):
                choices[-1] = choice + 1
                spans.append((position, end))
                choices.append(0)
                position = after
                break
        else:
            dead_ends.add((number, position))
            choices.pop()
            if not spans:
                return None
            position = spans.pop()[0]
    return spans if renderings or text == pieces[0] else None
