"""What a hidden-state store will take on disk, told and checked before anything is written."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

from eagle3cli.data.hidden_states.quantize import QUANTIZATIONS, Quantization
from eagle3cli.data.hidden_states.rows import RowCounts, empty_codec
from eagle3cli.data.hidden_states.store import StoreMeta
from eagle3cli.data.hidden_states.writer import (
    ExistingStore,
    StoreLayout,
    check_same_capture,
    plan_layout,
    read_existing,
)
from eagle3cli.errors import Eagle3Error
from eagle3cli.runtime.files import free_bytes
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.units import size_text

SPARE_BYTES = 64_000_000
"""Free space that is left over on top of the forecast."""
AUTO: tuple[Quantization, ...] = ("int8", "int4")
AUTO_SHARE = 0.5


def store_bytes(counts: RowCounts, encoding: Quantization, *, layers: int, hidden: int) -> int:
    """Bytes of all rows in an encoding."""
    return int(empty_codec(encoding, layers=layers, hidden=hidden).sizes(counts.counts_N3).sum())


def choose_quantization(
    requested: Quantization | Literal["auto"], counts: RowCounts, folder: Path, *, layers: int, hidden: int
) -> Quantization:
    """The encoding that a setting names; ``auto`` is int8, or int4 where int8 would take over half the free space."""
    if requested != "auto":
        return requested
    free = free_bytes(folder)
    fitting = (e for e in AUTO if store_bytes(counts, e, layers=layers, hidden=hidden) <= AUTO_SHARE * free)
    return next(fitting, AUTO[-1])


def plan_store(
    folder: Path, meta: StoreMeta, requested: Quantization | Literal["auto"], counts: RowCounts, report: Reporter
) -> tuple[StoreMeta, StoreLayout, ExistingStore | None]:
    """The meta with the quantization that a setting names, the layout of the shards, and what is in the folder.

    An unfinished store keeps the quantization that ``auto`` chose for it. Raises DataError where the folder holds a
    store of something else.
    """
    shape = {"layers": len(meta.aux_layers), "hidden": meta.hidden_size}
    existing = read_existing(folder, report)
    if existing is not None and requested == "auto":
        requested = existing.meta.encoding
    meta = replace(meta, encoding=choose_quantization(requested, counts, folder, **shape))
    if existing is not None:
        check_same_capture(existing.meta, meta, folder)
    layout = plan_layout(counts, empty_codec(meta.encoding, **shape), meta.shard_mb)
    return meta, layout, existing


def report_size(folder: Path, layout: StoreLayout, meta: StoreMeta, counts: RowCounts, report: Reporter) -> None:
    """Say how large the store will be, and in the other quantizations."""
    shape = {"layers": len(meta.aux_layers), "hidden": meta.hidden_size}
    others = ", ".join(f"{e} {size_text(store_bytes(counts, e, **shape))}" for e in QUANTIZATIONS if e != meta.encoding)
    report.info(
        f"{folder}: {len(layout.bytes_per_row)} rows, {counts.tokens} tokens, {layout.shards} shards, {meta.encoding}: "
        f"{size_text(layout.total)} ({layout.total / max(counts.tokens, 1):.0f} bytes a token; {others})"
    )


def check_space(folder: Path, needed: int, report: Reporter) -> None:
    """Raise Eagle3Error where ``needed`` bytes do not fit the disk."""
    free = free_bytes(folder)
    report.info(f"{size_text(needed)} to write, {size_text(free)} free")
    if needed + SPARE_BYTES > free:
        fix = (
            "make space, choose another disk with --output-path, a smaller --encoding, or fewer rows with --sample-size"
        )
        what = f"needs {size_text(needed)} but {size_text(free)} are free, of which {size_text(SPARE_BYTES)} are spared"
        raise Eagle3Error("disk-full", what, where=str(folder), fix=fix)
