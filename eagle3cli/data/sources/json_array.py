"""JSON arrays (or objects one after the other), streamed: an array of any size needs the memory of its longest row.

A damaged row costs that row: reading goes on at the next object that begins like the first one.
`ijson` takes 2 ms a MB where this takes 7, but ends at the first damaged row and lets the last of equal keys win.
"""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from eagle3cli.data.sources.lines import (
    LENIENT,
    LONGEST,
    STRICT,
    TOO_DEEP,
    UNTRUSTED,
    Damage,
    SourceRow,
    complaint,
    damage_of,
    open_bytes,
    row_of,
)

_CHUNK = 1 << 20
_PLAIN = json.JSONDecoder(parse_int=float)
_BAD_BYTE = re.compile("[\udc80-\udcff]")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_FIRST_KEY = re.compile(r'\{\s*("(?:[^"\\]|\\.){0,100}")\s*:')
_ROW_START = re.compile(r"[^ \t\r\n,]")
_OVERLAP = 512
"""More characters than the place between two rows has."""


class _Text:
    """A window on the text: ``buffer`` from ``at`` on is still to be read; ``line`` is the line of ``at``, from 1."""

    def __init__(self, stream: IO[str]) -> None:
        self.stream = stream
        self.buffer = ""
        self.at = 0
        self.line = 1

    def more(self, size: int = 0) -> bool:
        """Read on; False at the end (where a compressed file breaks off is its end: what was unpacked is read)."""
        text = self.stream.read(max(size, _CHUNK))
        self.buffer = self.buffer[self.at :] + text
        self.at = 0
        return bool(text)

    def move(self, at: int) -> None:
        """Go to ``at``, counting the lines on the way."""
        self.line += self.buffer.count("\n", self.at, at)
        self.at = at

    def peek(self) -> str:
        """The next character that is neither white space nor a comma; empty at the end."""
        while True:
            if character := _ROW_START.search(self.buffer, self.at):
                self.move(character.start())
                return character[0]
            self.move(len(self.buffer))
            if not self.more():
                return ""


def read_array(path: Path) -> Iterator[SourceRow]:
    """Rows of the file; where it breaks off, is damaged, or goes on after its end, that is the last SourceRow."""
    damage = damage_of(path)
    left = _trusted_rows(path, damage) if damage else math.inf
    for row, _ in _rows(path):
        if damage and left == 0:
            what = f"the compressed file is damaged ({damage.problem}); from here on nothing is read"
            yield SourceRow(row.number, None, what, path=str(path))
            return
        yield row
        left -= 1


def _trusted_rows(path: Path, damage: Damage) -> int:
    """How many rows of a damaged file are read: those up to some way before the first unreadable one, none where no row
    tells the damage's place."""
    lengths = []
    rows = _rows(path)
    is_located = not damage.by_checksum
    for row, length in rows:
        if row.problem is not None:
            is_located = is_located or damage.is_whole or next(rows, None) is not None
            break
        lengths.append(length)
    if not is_located:
        return 0
    untrusted = UNTRUSTED
    while lengths and untrusted > 0:
        untrusted -= lengths.pop()
    return len(lengths)


def _rows(path: Path) -> Iterator[tuple[SourceRow, int]]:
    """Rows of the file, each with the length of its text."""
    with open_bytes(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", errors="surrogateescape", newline="") as stream:
        text = _Text(stream)
        name = str(path)
        first_key = ""
        inside = ended = False
        while character := text.peek():
            line = text.line
            if character == ("]" if inside else "["):
                inside, ended = not inside, inside
                text.move(text.at + 1)
                continue
            if ended and not inside:
                yield SourceRow(line, None, "more text after the end of the array; it was not read", path=name), 0
                return
            value, end, problem = _value(text)
            source = text.buffer[text.at : end or text.at + _OVERLAP]
            if not first_key and (match := _FIRST_KEY.match(source)):
                first_key = match[1]
            if end:
                if problem is None and not source.isascii() and _BAD_BYTE.search(source):
                    problem = "not UTF-8"
                if problem is None:
                    yield row_of(line, value, name, surrogates=_SURROGATE.search(source) is not None), len(source)
                else:
                    yield SourceRow(line, None, problem, path=name), 0
                text.move(end)
            elif first_key and _resume(text, first_key):
                yield SourceRow(line, None, f"{problem}; reading goes on at line {text.line}", path=name), 0
            else:
                what = f"{problem}: the file breaks off or is damaged in the object that begins here"
                yield SourceRow(line, None, f"{what}; the rest is unread", path=name), 0
                return
        if inside:
            yield SourceRow(text.line, None, "the JSON array breaks off here", path=name), 0


def _value(text: _Text) -> tuple[Any, int, str | None]:
    """The value at ``text.at``, its end (0 where it has none) and the problem, if there is one.

    Reads on, twice as much each time, until the value is whole or cannot become so.
    """
    decoder = STRICT
    unclear = None
    size = _CHUNK
    while True:
        try:
            value, end = decoder.raw_decode(text.buffer, text.at)
            if end < len(text.buffer) or text.buffer[end - 1] in "}]":
                return value, end, unclear
            problem = "a number or word at the end of the file"
        except json.JSONDecodeError as error:
            problem = error.msg
            if problem.startswith("Invalid control character") and decoder is STRICT:
                decoder = LENIENT
                continue
            if not problem.startswith("Unterminated string") and error.pos < len(text.buffer) - 8:
                return None, 0, f"not valid JSON: {problem}"
        except RecursionError:
            return None, 0, TOO_DEEP
        except ValueError as error:  # well-formed, but what it says is not clear: go on behind it
            decoder = _PLAIN
            unclear = complaint(error)
            continue
        if len(text.buffer) - text.at > LONGEST:
            return None, 0, f"longer than {LONGEST >> 20} MB"
        if not text.more(size):
            return None, 0, f"not valid JSON: {problem}"
        size *= 2


def _resume(text: _Text, first_key: str) -> bool:
    """Go to the next object that begins with ``first_key``; False where there is none."""
    start = re.compile(r"[,\n}\]]\s*\{(?=\s*" + re.escape(first_key) + r"\s*:)")
    text.move(text.at + 1)
    while True:
        if match := start.search(text.buffer, text.at):
            text.move(match.end() - 1)
            return True
        text.move(max(text.at, len(text.buffer) - _OVERLAP))
        if not text.more():
            return False
