"""What becomes of every row that was read, in the order of the rows: the way from fates to the files of a result."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from eagle3cli.data.ledger import Ledger
from eagle3cli.data.prepare.dispositions import DUPLICATE, FATE, HELD_OUT, KEPT, RENAMED, Fates
from eagle3cli.data.prepare.external_sort import Records

RENAMED_REPAIR = "id made unique"


def written_rows(
    lines: Iterator[bytes],
    rows: Records,
    fates: Fates,
    twins: Records,
    ledger: Ledger,
    where: Callable[[int], str],
    first: int = 0,
    end: int | None = None,
) -> Iterator[tuple[int, bytes]]:
    """Fate (KEPT or HELD_OUT) and line of each row of the result among rows ``first`` to ``end - 1``.

    ``lines`` are the JSON lines of exactly these rows, in order. A row that repeats another one goes to the ledger.
    """
    twin = _of_rows(twins, first)
    row, before, share = next(twin, (-1, 0, 0.0))
    for block in rows.blocks(first, end):
        fate_of = fates[block["row"]].tolist()
        facts = zip(block["row"].tolist(), fate_of, block["place"].tolist(), block["content"].tolist(), strict=True)
        for number, fate, place, content in facts:
            line = next(lines)
            if number == row:
                _tell_twin(ledger, fate, where(place), line, where(before), share)
                row, before, share = next(twin, (-1, 0, 0.0))
            if fate & FATE not in (KEPT, HELD_OUT):
                continue
            if fate & RENAMED:
                # Rows with equal ids differ in their contents.
                value = _read(line)
                value["id"] = f"{value.get('id')}~{content:016x}"
                line = json.dumps(value, ensure_ascii=False).encode() + b"\n"
                ledger.repair((RENAMED_REPAIR,), where(place), value["id"])
            yield fate & FATE, line


def _of_rows(twins: Records, first: int) -> Iterator[tuple[int, int, float]]:
    for block in twins.sorted_by("row"):
        for row, before, share in zip(*(block[name].tolist() for name in ("row", "first", "share")), strict=True):
            if row >= first:
                yield row, before, share


def _tell_twin(ledger: Ledger, fate: int, place: str, line: bytes, before: str, share: float) -> None:
    name = str(_read(line).get("id") or "")
    if fate & FATE == DUPLICATE:
        ledger.drop("duplicate", place, name, f"duplicate of {before}", counted_as="duplicate")
    else:
        told = f"near duplicate of {before} ({share:.0%} of the words are the same)"
        ledger.drop("duplicate", place, name, told, counted_as="near duplicate")


def _read(line: bytes) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
    return value
