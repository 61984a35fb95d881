"""A hidden-state store written again in another encoding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from eagle3cli.data.hidden_states.calibration import fit_codec, sample_error, sample_rows
from eagle3cli.data.hidden_states.forecast import check_space, report_size
from eagle3cli.data.hidden_states.quantize import Quantization
from eagle3cli.data.hidden_states.rows import TOKENS, RowCodec, empty_codec
from eagle3cli.data.hidden_states.store import Index, Store
from eagle3cli.data.hidden_states.writer import StoreWriter, check_same_capture, plan_layout, read_existing
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
        raise UsageError(f"this store is {encoding} already", where=str(store.folder), fix="give another --encoding")
    if folder.resolve() == store.folder.resolve():
        raise UsageError("a store cannot be converted in place", where=str(folder), fix="give another --output-path")
    source = f"{store.meta.source} as {store.meta.encoding}, converted"
    meta = replace(store.meta, encoding=encoding, source=source, shard_mb=shard_mb)
    earlier = read_existing(folder, report)
    if earlier is not None:
        check_same_capture(earlier[0], meta, folder)
    shape = {"layers": len(meta.aux_layers), "hidden": meta.hidden_size}
    counts, read = store.index.counts, store.codec.to(device)
    plan = plan_layout(counts, empty_codec(encoding, **shape), shard_mb)
    report_size(folder, plan, counts, encoding, report, **shape)
    if earlier is None:
        check_space(folder, plan.total, report)
    sample = [read.decoded(store.packed(n)) for n in sample_rows(counts, SAMPLE_TOKENS)]
    index = (earlier[1] if earlier is not None else None) or Index(counts, fit_codec(encoding, sample), store.vocab)
    codec = index.codec.to(device)
    told = {"tokens": sum(len(row.token_ids_S) for row in sample), "error": sample_error(codec, sample)}
    with StoreWriter(folder, meta, plan, index, report, sample=told) as writer:
        if earlier is not None:
            check_space(folder, writer.bytes_left, report)
        _fill(writer, store, read, codec, report, stop)
        if not writer.complete:
            writer.finish()
    return Store(folder)


def _fill(writer: StoreWriter, store: Store, read: RowCodec, codec: RowCodec, report: Reporter, stop: Stop) -> None:
    tokens_N = store.counts_N3[:, TOKENS]
    left = sum(int(tokens_N[writer.plan.rows(s).start : writer.plan.rows(s).stop].sum()) for s in writer.pending)
    total = int(tokens_N.sum())
    with report.task(f"converting {store.folder.name}", total, unit="tokens", done=total - left) as task:
        for shard in writer.pending:
            rows = writer.plan.rows(shard)
            with writer.writing(shard) as put:
                for part in _parts(rows):
                    stop.check(f"finished shards are in {writer.folder}")
                    states = [read.decoded(store.packed(n)) for n in part]
                    for number, blob in zip(part, codec.pack(states), strict=True):
                        put(number, blob)
                    task.advance(int(tokens_N[part].sum()))


def _parts(rows: Sequence[int]) -> list[list[int]]:
    return [list(rows[at : at + ROWS_AT_ONCE]) for at in range(0, len(rows), ROWS_AT_ONCE)]
