"""Contents with marks in their place: how a chat template is asked where it writes each of them.

A mark is a short text that stands nowhere else. A conversation rendered with marks is cut at them into pieces, which
are the template's own text; `align` finds the same pieces in the real rendering, and so the contents between them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

MARK_PAIRS = (("\ue000", "\ue001"), ("\uf8f0", "\uf8f1"), ("\U000f0000", "\U000f0001"))


CONTENT, REASONING, BEGIN, END, REPLY, CALL = "123456"
"""Kinds of marks; digits, as templates may change the case of letters."""


@dataclass(frozen=True)
class Marks:
    """A pair of characters that open and close a mark."""

    open: str
    close: str

    def name(self, index: int, kind: str) -> str:
        """The mark of message ``index``; ``kind`` is one of those above."""
        return f"{self.open}{index}:{kind}{self.close}"

    def cut(self, text: str, kinds: str) -> Pieces:
        """The text cut at its marks of these kinds."""
        parts = re.split(f"{self.open}(\\d+):([{kinds}]){self.close}", text)
        names = tuple(zip(map(int, parts[1::3]), parts[2::3], strict=True))
        return Pieces(tuple(parts[0::3]), names)


@dataclass(frozen=True)
class Pieces:
    """A marked rendering: ``names[i]`` (message, kind) stands between ``texts[i]`` and ``texts[i + 1]``."""

    texts: tuple[str, ...]
    names: tuple[tuple[int, str], ...]


def free_marks(text: str) -> Marks | None:
    """Marks whose characters ``text`` does not hold."""
    return next((Marks(*pair) for pair in MARK_PAIRS if pair[0] not in text and pair[1] not in text), None)


def forms_of(content: str, *, quoted: bool = False) -> Sequence[str]:
    """How a template may write a content: whole, stripped in the usual ways, or (``quoted``) as JSON."""
    forms = [content]
    if content[:1].isspace() or content[-1:].isspace():
        forms += [content.strip(), content.rstrip(), content.lstrip(), content.strip("\n"), content.lstrip("\n")]
    if quoted:
        forms += [json.dumps(content, ensure_ascii=False)[1:-1], json.dumps(content)[1:-1]]
    return list(dict.fromkeys(forms))


Span = tuple[int, int]


def align(text: str, pieces: Sequence[str], forms: Sequence[Sequence[str]]) -> list[Span] | None:
    """Where the contents stand in ``text``, if pieces and contents in turn give exactly that text.

    ``forms[i]`` are the ways in which the content between ``pieces[i]`` and ``pieces[i + 1]`` may be written, the
    likeliest first.
    """
    if not text.startswith(pieces[0]):
        return None
    dead: set[tuple[int, int]] = set()
    spans: list[Span] = []
    choices = [0]
    position = len(pieces[0])
    while len(spans) < len(forms):
        number = len(spans)
        for choice in range(choices[-1], len(forms[number])):
            end = position + len(forms[number][choice])
            after = end + len(pieces[number + 1])
            if (
                text.startswith(forms[number][choice], position)
                and text.startswith(pieces[number + 1], end)
                and (number + 1 < len(forms) or after == len(text))
                and (number + 1, after) not in dead
            ):
                choices[-1] = choice + 1
                spans.append((position, end))
                choices.append(0)
                position = after
                break
        else:
            dead.add((number, position))
            choices.pop()
            if not spans:
                return None
            position = spans.pop()[0]
    return spans if forms or text == pieces[0] else None
