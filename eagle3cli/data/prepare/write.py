"""What becomes of every row that was read, in the order of the rows: from dispositions to the files of a result."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from eagle3cli.data.ledger import Ledger
from eagle3cli.data.prepare.row_table import DUPLICATE, HELD_OUT, KEPT, NEAR_DUPLICATE, RowTable

EVAL = "eval.jsonl"
RENAMED_REPAIR = "id made unique"
EQUAL_PROMPT = "an equal prompt is held out"
_ROWS = "SELECT row, file, line, content, disposition, renamed FROM rows WHERE row >= ? AND row < ? ORDER BY row"
_FIRST = "SELECT file, line, share FROM duplicates JOIN rows ON rows.row = first WHERE duplicates.row = ?"


def written_rows(
    lines: Iterator[bytes],
    rows: RowTable,
    ledger: Ledger,
    place_of: Callable[[int, int], str],
    first: int = 0,
    end: int | None = None,
) -> Iterator[tuple[int, bytes]]:
    """Disposition (KEPT or HELD_OUT) and line of each row of the result among rows ``first`` to ``end - 1``.

    ``lines`` are the JSON lines of exactly these rows, in order. A row that repeats another one goes to the ledger.
    """
    facts = rows.run(_ROWS, first, len(rows) if end is None else end)
    for row, file, number, content, disposition, renamed in facts:
        line = next(lines)
        if disposition in (KEPT, HELD_OUT):
            if renamed:
                # Rows with equal ids differ in their contents.
                value = _read(line)
                value["id"] = f"{value.get('id')}~{content[:8].hex()}"
                line = json.dumps(value, ensure_ascii=False).encode() + b"\n"
                ledger.repair((RENAMED_REPAIR,), place_of(file, number), value["id"])
            yield disposition, line
        elif disposition in (DUPLICATE, NEAR_DUPLICATE):
            name = str(_read(line).get("id") or "")
            first_file, first_number, share = rows.run(_FIRST, row).fetchone()
            kind = "duplicate" if disposition == DUPLICATE else "near duplicate"
            reason = f"{kind} of {place_of(first_file, first_number)}"
            if disposition == NEAR_DUPLICATE:
                reason += f" ({share:.0%} of the words are the same)"
            ledger.drop("duplicate", place_of(file, number), name, reason, counted_as=kind)


def _read(line: bytes) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
    return value
