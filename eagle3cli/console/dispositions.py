"""Where every row went, as text: what a `Ledger` counts, for prepare, merge and cache alike."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DISPOSITIONS = ("written", "rejected", "duplicates", "filtered", "left_out")
"""Their sum is the number of rows that were read."""


def dispositions(counts: Mapping[str, Any]) -> str:
    """How many rows had which disposition.

    >>> dispositions({"written": 1200, "rejected": 1, "duplicates": 0, "filtered": 0, "left_out": 7})
    'written 1,200, rejected 1, duplicates 0, filtered 0, left out 7'
    """
    return ", ".join(f"{name.replace('_', ' ')} {counts[name]:,}" for name in DISPOSITIONS)


def remarks(counts: Mapping[str, Any], *, told_earlier: bool = False) -> list[str]:
    """A line for each reason, warning and repair, with how many rows it concerns.

    ``told_earlier``: the result is of an earlier run, which has ended with exit code 3 for its rejected rows.
    """
    lines = [f"  {count:,} x {reason}" for reason, count in counts["reasons"].items()]
    lines += [f"  {count:,} kept, with a warning: {warning}" for warning, count in counts.get("warnings", {}).items()]
    lines += [f"  {count:,} repaired: {repair}" for repair, count in counts["repaired"].items()]
    if told_earlier and counts["rejected"]:
        lines.append(f"  the {counts['rejected']:,} rejected rows were told when this was made; nothing is new")
    return lines


def has_entries(counts: Mapping[str, Any]) -> bool:
    """Whether any row has an entry in errors.jsonl."""
    dropped = any(counts.get(name) for name in ("rejected", "duplicates", "filtered"))
    return dropped or bool(counts.get("warnings")) or bool(counts["repaired"])
