"""A hidden-state store written again in another encoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from eagle3cli.data.hidden_states.calibration import describe_sample, fit_codec, sample_rows
from eagle3cli.data.hidden_states.forecast import check_space, plan_store, report_size
from eagle3cli.data.hidden_states.quantize import Quantization
from eagle3cli.data.hidden_states.rows import TOKENS, RowCodec
from eagle3cli.data.hidden_states.store import Index, Store
from eagle3cli.data.hidden_states.writer import StoreWriter
from eagle3cli.errors import UsageError
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.stop import Stop

SAMPLE_TOKENS = 4096
ROWS_AT_ONCE = 16


def convert(
    store: Store,
    folder: Path,
    encoding: Quantization,
    *,
    shard_mb: int,
    device: torch.device,
    report: Reporter,
    stop: Stop,
) -> Store:
    """Write ``store`` to ``folder`` in ``encoding``, or what an earlier run has left to do; the new store.

    The loss of an encoding that the states went through before stays, and the store says so. Raises UsageError where
    the store has this encoding already, Eagle3Error where the disk is too small or fills up.
    """
    if encoding == store.meta.encoding:
        raise UsageError(
            "conflicting-options",
            f"this store is {encoding} already",
            where=str(store.folder),
            fix="give another --encoding",
        )
    if folder.resolve() == store.folder.resolve():
        raise UsageError(
            "conflicting-options",
            "a store cannot be converted in place",
            where=str(folder),
            fix="give another --output-path",
        )
    source = f"{store.meta.source} as {store.meta.encoding}, converted"
    counts = store.index.counts
    read = store.codec.to(device)
    meta, layout, existing = plan_store(
        folder, replace(store.meta, source=source, shard_mb=shard_mb), encoding, counts, report
    )
    report_size(folder, layout, meta, counts, report)
    if existing is None:
        check_space(folder, layout.total, report)
    sample = [read.decoded(store.packed(n)) for n in sample_rows(counts, SAMPLE_TOKENS)]
    index = existing.index if existing is not None else None
    index = index or Index(counts, fit_codec(encoding, sample), store.vocab)
    codec = index.codec.to(device)
    with StoreWriter(folder, meta, layout, index, report, sample=describe_sample(codec, sample)) as writer:
        if existing is not None:
            check_space(folder, writer.bytes_left, report)
        _fill(writer, store, read, codec, report, stop)
        writer.finish()
    return Store(folder)


def _fill(writer: StoreWriter, store: Store, read: RowCodec, codec: RowCodec, report: Reporter, stop: Stop) -> None:
    tokens_N = store.counts_N3[:, TOKENS]
    left = sum(int(tokens_N[writer.layout.rows(s).start : writer.layout.rows(s).stop].sum()) for s in writer.pending)
    total = int(tokens_N.sum())
    with report.task(f"converting {store.folder.name}", total, unit="tokens", done=total - left) as task:
        for shard in writer.pending:
            rows = writer.layout.rows(shard)
            with writer.writing(shard) as put:
                for part in _parts(rows):
                    stop.check(f"finished shards are in {writer.folder}")
                    states = [read.decoded(store.packed(n)) for n in part]
                    for number, blob in zip(part, codec.pack(states), strict=True):
                        put(number, blob)
                    task.advance(int(tokens_N[part].sum()))


def _parts(rows: Sequence[int]) -> list[list[int]]:
    return [list(rows[at : at + ROWS_AT_ONCE]) for at in range(0, len(rows), ROWS_AT_ONCE)]
