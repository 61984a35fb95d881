"""What a command would do: made by each stage beside the code that does it, shown by ``--dry-run`` and ``plan``.

Making a plan reads what is there and changes nothing: no folder is made, nothing is asked of a network.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Plan:
    """What a command would read, write and leave as it is; ``numbers`` are the same for scripts."""

    command: str
    reads: tuple[str, ...] = ()
    """Inputs, each with what is known of it."""
    does: tuple[str, ...] = ()
    """The work, one line for each part."""
    writes: tuple[str, ...] = ()
    """Outputs, each with its size where that is known."""
    done: tuple[str, ...] = ()
    """What an earlier run has left, so that it is not done again."""
    warnings: tuple[str, ...] = ()
    table: tuple[tuple[str, ...], ...] = ()
    """Forecasts side by side, the names of the columns first; numbers stand right."""
    notes: tuple[str, ...] = ()
    """What decides the ranges of the table."""
    numbers: dict[str, Any] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """For people."""
        parts = (("reads", self.reads), ("done", self.done), ("does", self.does), ("writes", self.writes))
        shown = [f"{'' if at else name:<8}{line}" for name, lines in parts for at, line in enumerate(lines)]
        return [
            f"eagle3 {self.command} would do this; nothing was done:",
            *(f"  {line}" for line in shown),
            *(["", *self._table_lines()] if self.table else []),
            *(["", "What decides the ranges:", *(f"  {note}" for note in self.notes)] if self.notes else []),
        ]

    def _table_lines(self) -> list[str]:
        widths = [max(map(len, column)) for column in zip(*self.table, strict=True)]
        return [
            "  ".join(text.rjust(width) if at else text.ljust(width) for at, (text, width) in enumerate(cells)).rstrip()
            for cells in ([*zip(row, widths, strict=True)] for row in self.table)
        ]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        parts = {name: list(getattr(self, name)) for name in ("reads", "done", "does", "writes", "warnings")}
        return {"command": self.command, "dry_run": True, **parts, **self.numbers}
