"""What a hidden-state store will take on disk, told and checked before anything is written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal

from eagle3cli.data.encodings import ENCODINGS, Encoding
from eagle3cli.data.store_rows import RowCounts, empty_codec
from eagle3cli.data.store_writer import Plan
from eagle3cli.errors import Eagle3Error
from eagle3cli.runtime.report import Reporter

SPARE_BYTES = 64_000_000
"""Free space that is left over on top of the forecast."""
AUTO: tuple[Encoding, ...] = ("int8", "int4")
AUTO_SHARE = 0.5


def store_bytes(counts: RowCounts, encoding: Encoding, *, layers: int, hidden: int) -> int:
    """Bytes of all rows in an encoding."""
    return int(empty_codec(encoding, layers=layers, hidden=hidden).sizes(counts.counts_N3).sum())


def choose_encoding(
    wanted: Encoding | Literal["auto"], counts: RowCounts, folder: Path, *, layers: int, hidden: int
) -> Encoding:
    """The encoding that a setting names; ``auto`` is int8, or int4 where int8 would take over half the free space."""
    if wanted != "auto":
        return wanted
    free = free_bytes(folder)
    fitting = (e for e in AUTO if store_bytes(counts, e, layers=layers, hidden=hidden) <= AUTO_SHARE * free)
    return next(fitting, AUTO[-1])


def free_bytes(folder: Path) -> int:
    """Free space where ``folder`` is or will be."""
    there = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return shutil.disk_usage(there).free


def tell_forecast(
    folder: Path, plan: Plan, counts: RowCounts, encoding: Encoding, report: Reporter, *, layers: int, hidden: int
) -> None:
    """Say how large the store will be, and in the other encodings."""
    total = plan.total
    others = ", ".join(
        f"{e} {size_text(store_bytes(counts, e, layers=layers, hidden=hidden))}" for e in ENCODINGS if e != encoding
    )
    report.info(
        f"{folder}: {len(plan.bytes_per_row)} rows, {counts.tokens} tokens, {plan.shards} shards, {encoding}: "
        f"{size_text(total)} ({total / max(counts.tokens, 1):.0f} bytes a token; {others})"
    )


def check_space(folder: Path, needed: int, report: Reporter) -> None:
    """Raise Eagle3Error where ``needed`` bytes do not fit the disk."""
    free = free_bytes(folder)
    report.info(f"{size_text(needed)} to write, {size_text(free)} free")
    if needed + SPARE_BYTES > free:
        fix = (
            "make space, choose another disk with --output-path, a smaller --encoding, or fewer rows with --sample-size"
        )
        raise Eagle3Error(f"needs {size_text(needed)} but {size_text(free)} are free", where=str(folder), fix=fix)


def size_text(count: int) -> str:
    """Bytes for people: 1.3 GB."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit in ("bytes", "kB") else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def time_text(seconds: float) -> str:
    """A time for people: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
