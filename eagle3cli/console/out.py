"""The one way to the terminal: data on stdout, talk on stderr, one JSON result with ``--json``."""

from __future__ import annotations

import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from eagle3cli.errors import Eagle3Error
from eagle3cli.runtime.report import ProgressBar

if TYPE_CHECKING:
    from rich.console import RenderableType

    from eagle3cli.console.progress import Board


NextLine = Callable[[str, Mapping[str, object]], str]
"""The line that runs a command with these settings, by key."""


def _plain(value: Any) -> Any:
    """A value that JSON can hold: paths as text, NaN and infinities as null."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value) if isinstance(value, Path) else _plain(value.item()) if hasattr(value, "item") else str(value)


def is_terminal(stream: IO[str]) -> bool:
    """Whether a person sees ``stream`` live."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


class Out:
    """Where a command's output goes; also the Reporter of the code below ``commands/``.

    >>> out = Out(json_wanted=True)
    >>> out.result({"rows": 3}, "3 rows")
    {"rows": 3}
    """

    def __init__(self, *, json_wanted: bool = False, next_line: NextLine | None = None) -> None:
        self.json_wanted = json_wanted
        self._next_line = next_line
        self._next: str | None = None
        self._board: Board | None = None

    @property
    def colour(self) -> bool:
        """Whether text for stdout may carry colour."""
        return not self.json_wanted and is_terminal(sys.stdout) and not os.environ.get("NO_COLOR")

    def print(self, text: str) -> None:
        """Data for people on stdout; on stderr with --json, where stdout holds the result alone."""
        self._write(text, sys.stderr if self.json_wanted else sys.stdout)

    def next(self, command: str, values: Mapping[str, object] | None = None) -> None:
        """Have the command to go on with stand below the result that follows, or in it as ``next``.

        ``values`` are the settings that it needs, by key, where it would not find them by itself.
        """
        if self._next_line is not None:
            self._next = self._next_line(command, values or {})

    def result(self, data: dict[str, object], text: str) -> None:
        """The command's one result: ``data`` as JSON with --json, else ``text``."""
        if self._next is not None:
            data = {**data, "next": self._next}
            text = f"{text}\nnext: {self._next}"
        if self.json_wanted:
            self._write(json.dumps(_plain(data), ensure_ascii=False), sys.stdout)
        else:
            self._write(text, sys.stdout)

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """A table of data; numbers stand to the right."""
        cells = [[_cell(value) for value in row] for row in rows]
        if self.colour:
            self.print(_rich_table(title, columns, cells))
        else:
            self.print(_plain_table(title, columns, cells))

    def info(self, text: str) -> None:
        """A remark on stderr."""
        self._write(text, sys.stderr)

    def loading(self, text: str) -> None:
        """A remark at once, before seconds in which nothing can be shown; only on a terminal."""
        if is_terminal(sys.stderr):
            self._write(_paint(text, "2"), sys.stderr)

    def warn(self, text: str) -> None:
        """A warning on stderr."""
        self._write(f"{_paint('warning:', '33')} {text}", sys.stderr)

    def error(self, error: Eagle3Error, debug_hint: str = "") -> None:
        """An error on stderr, and as ``{"error": ...}`` on stdout with --json."""
        if self.json_wanted:
            data = {
                "code": error.code,
                "message": error.message,
                "where": error.where,
                "fix": error.fix,
                "exit_code": error.exit_code,
            }
            self._write(json.dumps({"error": data}, ensure_ascii=False), sys.stdout)
        first, *rest = str(error).split("\n")
        text = "\n".join(
            [f"{_paint(f'error [{error.code}]:', '1;31')} {first}", *rest, *([debug_hint] if debug_hint else [])]
        )
        self._write(text, sys.stderr)

    def task(
        self, name: str, total: int | None = None, unit: str = "rows", done: int = 0
    ) -> AbstractContextManager[ProgressBar]:
        """A job with progress, rate and time left; bars on a terminal, now and then a line elsewhere."""
        return self._the_board().task(name, total, unit, done)

    @property
    def live(self) -> bool:
        """Whether jobs are shown as bars, on a terminal."""
        return self._the_board().live

    def show_above(self, job: str, what: RenderableType | None) -> None:
        """Have ``what`` stand above the bars from now on, instead of the notes of the job of this name."""
        self._the_board().above = None if what is None else (job, what)

    def _the_board(self) -> Board:
        from eagle3cli.console.progress import Board

        if self._board is None:
            self._board = Board(sys.stderr, live=is_terminal(sys.stderr))
        return self._board

    def _write(self, text: str, stream: IO[str]) -> None:
        if self._board is not None and self._board.write(text, stream):
            return
        stream.write(text + "\n")
        stream.flush()


def _paint(text: str, code: str) -> str:
    colour = is_terminal(sys.stderr) and not os.environ.get("NO_COLOR")
    return f"\x1b[{code}m{text}\x1b[0m" if colour else text


def _cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return "-" if value is None else str(value)


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?\d[\d,]*(\.\d+)?(e[-+]?\d+)?[%x]?", text) is not None


def _numeric_columns(columns: Sequence[str], rows: list[list[str]]) -> list[bool]:
    filled = [[row[i] for row in rows if i < len(row) and row[i] != "-"] for i in range(len(columns))]
    return [bool(cells) and all(map(_is_number, cells)) for cells in filled]


def _plain_table(title: str, columns: Sequence[str], rows: list[list[str]]) -> str:
    right = _numeric_columns(columns, rows)
    widths = [max(len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
    lines = [title] if title else []
    for row in [list(columns), ["-" * width for width in widths], *rows]:
        padded = [c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        lines.append("  ".join(padded).rstrip())
    return "\n".join(lines)


def _rich_table(title: str, columns: Sequence[str], rows: list[list[str]]) -> str:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title) if title else None, title_justify="left", box=SIMPLE_HEAD)
    for name, right in zip(columns, _numeric_columns(columns, rows), strict=True):
        table.add_column(Text(name), justify="right" if right else "left")
    for row in rows:
        table.add_row(*map(Text, row))
    console = Console(file=sys.stdout)
    with console.capture() as capture:
        console.print(table)
    return capture.get().rstrip("\n")
