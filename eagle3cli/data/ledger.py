"""Where every input row went: written, rejected, a duplicate, left out. Nothing vanishes."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import IO, Any, Literal

ERRORS = "errors.jsonl"
"""Name of the file beside a result with a line for each row that is not in it, was repaired, or needs a look."""

Kind = Literal["rejected", "duplicate", "filtered", "warning"]
_DROPPED: dict[str, Kind] = {"rejected": "rejected", "duplicates": "duplicate", "filtered": "filtered"}
MOST_REASONS = 200
"""Reasons that are counted apart; a damaged file may give a different one for every row."""
OTHERS = "other reasons"
LONGEST_NAME = 200


@dataclass
class Ledger:
    """Counts rows and writes a line to ``errors`` for each one that is not in the result, with place and reason."""

    errors: IO[str]
    read: int = 0
    written: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    """Rows that nobody complained about and that are counted only (not sampled ...), by why."""
    reasons: dict[Kind, Counter[str]] = field(default_factory=dict)
    repairs: Counter[str] = field(default_factory=Counter)

    def drop(self, kind: Kind, place: str, name: str, reason: str, *, counted_as: str = "") -> None:
        """One row is not in the result; ``counted_as`` is the reason without what is this row's own."""
        counts = self.reasons.setdefault(kind, Counter())
        general = counted_as or _general(reason)
        counts[general if general in counts or len(counts) < MOST_REASONS else OTHERS] += 1
        self._write(place, name, kind, reason)

    def repair(self, repairs: tuple[str, ...], place: str = "", name: str = "") -> None:
        """One row was set right in these ways; with its place it is named, too."""
        self.repairs.update(_general(repair) for repair in repairs)
        if repairs and place:
            self._write(place, name, "repaired", "; ".join(repairs))

    def _write(self, place: str, name: str, kind: str, reason: str) -> None:
        entry = {"place": place, "id": name[:LONGEST_NAME], "kind": kind, "reason": reason}
        self.errors.write(json.dumps(entry, ensure_ascii=False) + "\n")

    def summary(self) -> dict[str, Any]:
        """All counts; read = written + rejected + duplicates + filtered + left out, and ``reasons`` are of the last
        four."""
        dropped = {name: self.reasons.get(kind, Counter()) for name, kind in _DROPPED.items()}
        counts = {name: reasons.total() for name, reasons in dropped.items()}
        reasons = [entry for counter in (*dropped.values(), self.left_out) for entry in counter.most_common()]
        return {
            "read": self.read,
            "written": self.written,
            **counts,
            "left_out": self.left_out.total(),
            "reasons": dict(reasons),
            "warnings": dict(self.reasons.get("warning", Counter()).most_common()),
            "repaired": dict(self.repairs.most_common()),
        }


def _general(reason: str) -> str:
    """The reason without the numbers and names of one row, so that equal reasons are counted together.

    It is shown in a terminal, so nothing in it may steer one.
    """
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in reason)
    text = re.sub(r" of (line|\S+:)\d+$| \(columns: .*\)(?=; name the columns|$)", "", text)
    text = re.sub(r"(?<=message )\d+", "N", text)
    text = re.sub(r"; reading goes on at line \d+$", "", text)
    text = re.sub(r" ?\((column|byte) \d+.*?\)", "", text)
    return re.sub(r"^\d+ leading assistant messages? dropped", "leading assistant messages dropped", text).strip()
