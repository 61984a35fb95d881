"""The store that a live run fills and then reads (``--keep-states``): begun, or gone on with, before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from eagle3cli.backends.batches.batch import BatchSource
from eagle3cli.backends.batches.keeping import StatesKeeper, state_rows
from eagle3cli.backends.batches.online import OnlineSource
from eagle3cli.backends.capture.capture import identify_target
from eagle3cli.backends.roles.source import RemoteSource
from eagle3cli.data.hidden_states.calibration import fit_codec, sample_rows
from eagle3cli.data.hidden_states.forecast import SPARE_BYTES, choose_quantization, plan_store, store_bytes
from eagle3cli.data.hidden_states.quantize import Quantization
from eagle3cli.data.hidden_states.rows import RowCodec, RowCounts, count_rows, empty_codec
from eagle3cli.data.hidden_states.store import Index, StoreMeta, vocab_hash
from eagle3cli.data.hidden_states.writer import StoreWriter, discard_store
from eagle3cli.data.tokens.rows import images_hash
from eagle3cli.errors import Eagle3Error
from eagle3cli.models.config import DraftConfig
from eagle3cli.runtime.distributed import Ranks
from eagle3cli.runtime.files import free_bytes
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.units import size_text
from eagle3cli.settings.tables import Settings
from eagle3cli.training.inputs import Inputs

FOLDER = "hidden_states"
"""In the run's folder."""
FITTED = ("int8", "int4")
FIT_TOKENS = 4096


def states_keeper(settings: Settings, inputs: Inputs, ranks: Ranks, report: Reporter) -> StatesKeeper | None:
    """The run's store; None where it keeps none. All ranks must ask.

    Raises Eagle3Error where the disk has no room for it, DataError where the folder holds states of something else.
    """
    if not settings.train.keep_states:
        return None
    source = inputs.source
    assert isinstance(source, OnlineSource | RemoteSource), "settings refuse it for a store"
    folder = settings.train.output_dir / FOLDER
    counts = count_rows(source.rows)
    if ranks.is_main and settings.train.overwrite:
        discard_store(folder)
    ranks.barrier()
    meta = StoreMeta(
        **vars(identify_target(settings.target, inputs.config)),
        data_hash=counts.data_hash,
        images_hash=images_hash(source.rows),
        rows=len(source.rows),
        vocab_hash=vocab_hash(inputs.vocab),
        shard_mb=settings.hidden_states.shard_mb,
        encoding="bf16",  # until it is chosen
    )
    requested = settings.hidden_states.encoding
    planned, layout, existing = plan_store(folder, meta, requested, counts, report)
    index = existing.index if existing is not None else None
    if index is None and (ranks.is_main or ranks.job is None):  # a target in shards is run by all its ranks
        index = Index(counts, _fitted(source, counts, planned), inputs.vocab)
    ranks.barrier()  # all have seen what was there
    with ranks.main_process_first():
        if not ranks.is_main:  # what the main rank has chosen
            planned, layout, existing = plan_store(folder, meta, requested, counts, report)
            index = existing.index if existing is not None else None
        assert index is not None, "the main rank has written it"
        writer = StoreWriter(folder, planned, layout, index, report, rank=ranks.rank, ranks=ranks.world_size)
        keeper = StatesKeeper(writer, index.codec, inputs.weights["embedding"].device, ranks)
        if ranks.is_main and not keeper.complete:
            _check_space(folder, keeper.bytes_to_take)
            keeper.begin()
            told = f"{size_text(layout.total)} in {planned.encoding}, read from the second epoch on"
            report.info(f"states are kept in {folder}: {told}")
    return keeper


def _fitted(source: BatchSource, counts: RowCounts, meta: StoreMeta) -> RowCodec:
    """The encoding, fitted to the states of a few rows where it has to be."""
    if meta.encoding not in FITTED:
        return empty_codec(meta.encoding, layers=len(meta.aux_layers), hidden=meta.hidden_size)
    rows = state_rows(source.batch(sample_rows(counts, FIT_TOKENS)))
    return fit_codec(meta.encoding, rows).to(torch.device("cpu"))


def _check_space(folder: Path, needed: int) -> None:
    free = free_bytes(folder)
    if needed + SPARE_BYTES > free:
        fix = "make space, choose another disk with --output-dir, a smaller --encoding, or leave --keep-states out"
        what = f"keeping states needs {size_text(needed)} but {size_text(free)} are free"
        raise Eagle3Error("disk-full", what, where=str(folder), fix=fix)


def kept_states_bytes(
    settings: Settings, draft: DraftConfig, lengths: Sequence[int], loss_tokens: Sequence[int]
) -> int:
    """About what the store of a run takes on disk, with rows of these lengths and tokens with loss."""
    columns = [list(lengths), list(lengths), list(loss_tokens)]
    counts = RowCounts(torch.tensor(columns, dtype=torch.int64).T, "")
    shape = {"layers": len(draft.aux_layers), "hidden": draft.target_hidden_size}
    folder = settings.train.output_dir / FOLDER
    encoding: Quantization = choose_quantization(settings.hidden_states.encoding, counts, folder, **shape)
    return store_bytes(counts, encoding, **shape)
