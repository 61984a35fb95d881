"""Some rows of a hidden-state store as a store of their own: their bytes are copied, the target reads nothing again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path

import torch

from eagle3cli.data.hidden_states.forecast import check_space
from eagle3cli.data.hidden_states.rows import RowCounts, add_row
from eagle3cli.data.hidden_states.store import Index, Store
from eagle3cli.data.hidden_states.writer import StoreWriter, plan_layout
from eagle3cli.runtime.report import Reporter


def select_rows(store: Store, numbers: Sequence[int], folder: Path, report: Reporter) -> Store:
    """Write the rows with these numbers to ``folder``, in this order, or what an earlier call has left to do.

    Raises DataError where the folder holds another selection, Eagle3Error where the disk is too small or fills up.
    """
    digest = blake2b(digest_size=16)
    for number in numbers:
        row = store.packed(number)
        add_row(digest, row.token_ids_S.numpy().tobytes(), row.loss_mask_S.numpy().tobytes())
    counts = RowCounts(store.counts_N3[torch.tensor(numbers, dtype=torch.long)], digest.hexdigest())
    meta = replace(store.meta, data_hash=counts.data_hash, rows=len(numbers))
    layout = plan_layout(counts, store.codec, meta.shard_mb)
    sample = store.manifest["sample"]
    with StoreWriter(folder, meta, layout, Index(counts, store.codec, store.vocab), report, sample=sample) as writer:
        check_space(folder, writer.bytes_left, report)
        for shard in writer.pending:
            with writer.writing(shard) as put:
                for number in writer.layout.rows(shard):
                    place, at = store.place(numbers[number])
                    put(number, store.shard(place).read(at))
        writer.finish()
    return Store(folder)
