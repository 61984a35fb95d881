"""Logs of a server as exchanges: each line is one, a half of one, or told with its place and reason."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from eagle3cli.data.sources.json_array import read_array
from eagle3cli.data.sources.lines import SourceRow, open_bytes, read_jsonl
from eagle3cli.data.traffic.exchange import Exchange, Halves, exchange_of, halves_of
from eagle3cli.errors import DataError

NESTED = "nested too deeply"
_ARRAY = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:\[\s*\{|\{\r?\n\s*[\"}])")
"""How an array of objects begins, or one object over several lines."""
_LINES = re.compile(rb"\s*[^\n]*[^\s,\[]\s*\n\{")
"""How lines begin whose first one is cut off, and looks like the beginning of an array."""


@dataclass(frozen=True)
class LogEntry:
    """One request with its reply, or why a line of the log is none."""

    place: str
    """``file:line``, of the request where the two halves stand on lines of their own."""
    exchange: Exchange | None = None
    problem: str = ""
    """Why there is no exchange."""
    repairs: tuple[str, ...] = ()
    lines: int = 1
    """Lines of the log that it was made of."""
    damaged: bool = False
    """Whether the line could not even be read; else it says something, but holds no exchange to learn from."""


def read_logs(paths: Sequence[Path]) -> Iterator[LogEntry]:
    """Every exchange of the logs (JSON lines or an array, plain or packed), and every line that is none.

    A request and its response may stand on two lines, a stream on many, where an id joins them; what is not joined by
    the end of the last file is told then.
    """
    open_halves: dict[str, _OpenHalf] = {}
    for path in paths:
        for row in read_array(path) if _holds_array(path) else read_jsonl(path):
            yield from _entries(row, open_halves)
    for half in open_halves.values():
        yield half.entry()


def _holds_array(path: Path) -> bool:
    with open_bytes(path) as file:
        head = file.read(1 << 16)
    return _ARRAY.match(head) is not None and _LINES.match(head) is None


@dataclass
class _OpenHalf:
    """Halves that wait for the other, or for the rest of a stream."""

    place: str
    halves: Halves
    repairs: tuple[str, ...]
    lines: int = 1

    def entry(self) -> LogEntry:
        """What the halves come to."""
        try:
            return LogEntry(self.place, exchange_of(self.halves), repairs=self.repairs, lines=self.lines)
        except DataError as error:
            return LogEntry(self.place, problem=error.message, lines=self.lines)
        except RecursionError:
            return LogEntry(self.place, problem=NESTED, lines=self.lines)


def _entries(row: SourceRow, open_halves: dict[str, _OpenHalf]) -> Iterator[LogEntry]:
    if row.value is None:
        yield LogEntry(row.place, problem=row.problem or "unreadable", damaged=True)
        return
    try:
        halves = halves_of(row.value)
    except DataError as error:
        yield LogEntry(row.place, problem=error.message)
        return
    except RecursionError:
        yield LogEntry(row.place, problem=NESTED)
        return
    half = _OpenHalf(row.place, halves, row.repairs)
    is_stream = isinstance(halves.response, list) and halves.request is None
    key = halves.key if halves.request is None or (halves.response is None and not _holds_reply(halves)) else ""
    if not key:
        yield half.entry()
        return
    other = open_halves.get(key)
    if other is None:
        open_halves[key] = half
    elif is_stream and isinstance(other.halves.response, list):
        other.halves.response.extend(halves.response)  # in place: a stream may have many chunks
        other.lines += 1
    elif (other.halves.request is None) != (halves.request is None):
        first, second = (other, half) if halves.request is None else (half, other)
        joined = _OpenHalf(
            first.place, first.halves.joined(second.halves), (*other.repairs, *row.repairs), other.lines + 1
        )
        if isinstance(joined.halves.response, list):
            open_halves[key] = joined  # more of the stream may come
        else:
            del open_halves[key]
            yield joined.entry()
    else:
        yield other.entry()  # an id that is used twice: nobody can say which half belongs to which
        open_halves[key] = half


def _holds_reply(halves: Halves) -> bool:
    messages = (halves.request or {}).get("messages")  # none where it is one of the Responses API
    return isinstance(messages, list) and isinstance(messages[-1], dict) and messages[-1].get("role") == "assistant"
