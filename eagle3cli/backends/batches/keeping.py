"""A hidden-state store that the first epoch of a live target fills, and the later ones read.

Each rank writes what it trains on. What a run that was cut off has not written is made before
the store is closed: rows that are there are told by their checksums, whoever wrote them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise

import torch
from torch import Tensor

from eagle3cli.backends.batches.batch import TargetBatch
from eagle3cli.backends.batches.store import StoreSource
from eagle3cli.data.hidden_states.partial import PartialShard
from eagle3cli.data.hidden_states.rows import RowCodec, StateRow, aux_count, teacher_positions
from eagle3cli.data.hidden_states.shard import shard_name
from eagle3cli.data.hidden_states.store import Store
from eagle3cli.data.hidden_states.writer import StoreWriter
from eagle3cli.runtime.distributed import Ranks
from eagle3cli.runtime.report import Reporter

Make = Callable[[Sequence[int]], Iterator[TargetBatch | None]]
"""Batches of this rank's part of some rows, made live; all ranks must ask for the same rows."""


class StatesKeeper:
    """The store of a run; the main rank's ``writer`` has opened it before the others come."""

    def __init__(self, writer: StoreWriter, codec: RowCodec, device: torch.device, ranks: Ranks) -> None:
        self.folder = writer.folder
        self.codec = codec
        self.device = device
        self.ranks = ranks
        self.complete = writer.complete
        """Whether all states are there and can be read."""
        self._writer = writer
        self._starts = writer.layout.starts
        self._shards = [PartialShard(self.folder / shard_name(n), shape) for n, shape in enumerate(writer.shapes)]
        self._own_codec = codec.to(device)
        self._thread = ThreadPoolExecutor(1, "keep")
        self._writing: Future[None] | None = None

    def begin(self) -> None:
        """Take the space of all that is not there; the main rank does, before the others write."""
        for shard in self._open():
            shard.begin()

    @property
    def bytes_to_take(self) -> int:
        """Of the disk, beyond what an earlier session has taken."""
        return sum(shard.shape.bytes for shard in self._open() if not shard.begun)

    def put(self, batch: TargetBatch) -> None:
        """Keep the states of a batch; they are written while the next one is trained on."""
        if self.complete:
            return
        blobs = self._own_codec.pack(state_rows(batch))
        self._wait()
        self._writing = self._thread.submit(self._write, batch.rows, blobs)

    def finish(self, make: Make, report: Reporter) -> None:
        """Close the store, once its last row is there; all ranks must come."""
        if self.complete:
            return
        self._wait()
        self.ranks.barrier()
        missing = self._missing()
        self.ranks.barrier()
        if missing:
            report.info(f"{self.folder}: the states of {len(missing)} rows are not there and are made now")
            for batch in make(missing):
                if batch is not None:
                    self.put(batch)
            self._wait()
            self.ranks.barrier()
        if self.ranks.is_main:
            for shard in self._open():
                shard.finish()
            self._writer.finish()
        self._writer.__exit__()
        self.ranks.barrier()
        self.complete = True

    def source(self) -> StoreSource:
        """The rows of the closed store."""
        return StoreSource(Store(self.folder), device=self.device)

    def _open(self) -> list[PartialShard]:
        return [shard for shard in self._shards if not shard.path.is_file()]

    def _missing(self) -> list[int]:
        rows = []
        for first, shard in zip(self._starts, self._shards, strict=False):
            if not shard.path.is_file():
                rows += [first + at for at in shard.missing()]
        return rows

    def _write(self, rows: Sequence[int], blobs: Sequence[Tensor]) -> None:
        bounds = torch.tensor(self._starts[1:])
        for row, blob in zip(rows, blobs, strict=True):
            at = int(torch.bucketize(row, bounds, right=True))
            if not self._shards[at].path.is_file():
                self._shards[at].put(row - self._starts[at], blob)

    def _wait(self) -> None:
        """What could not be written is told here."""
        if self._writing is not None:
            self._writing.result()
            self._writing = None


def state_rows(batch: TargetBatch) -> list[StateRow]:
    """What a store keeps of each sequence of a batch that is here whole."""
    rows = []
    for begin, end in pairwise(batch.cu_seqlens):
        mask_S = batch.loss_mask_N[begin:end]
        teacher_R = teacher_positions(mask_S)
        at_R = begin + teacher_R.to(batch.last_NH.device)
        rows.append(
            StateRow(
                token_ids_S=batch.token_ids_N[begin:end],
                loss_mask_S=mask_S,
                aux_UC=batch.aux_NC[begin : begin + aux_count(teacher_R)],
                last_RH=batch.last_NH[at_R],
                top_R=batch.top_N[at_R],
            )
        )
    return rows
