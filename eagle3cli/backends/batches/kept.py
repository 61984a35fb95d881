"""Batches of a live target that are trained on again: their states wait in the host's memory."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch

from eagle3cli.backends.batches.batch import RowsByRank, TargetBatch
from eagle3cli.runtime.devices import HostCopy, to_device, to_host


@dataclass(frozen=True)
class _Kept:
    """A batch without what was on its device, and copies of that in the order of ``TargetBatch.on_device``."""

    rest: TargetBatch
    device: torch.device
    copies: tuple[HostCopy, ...]


class KeptBatches:
    """This rank's parts of batches, by the rows of all ranks: those that share a target keep and miss the same ones."""

    def __init__(self) -> None:
        self._kept: dict[tuple[tuple[int, ...], ...], _Kept | None] = {}

    def __contains__(self, rows_by_rank: RowsByRank) -> bool:
        return _key(rows_by_rank) in self._kept

    def __len__(self) -> int:
        return len(self._kept)

    def put(self, rows_by_rank: RowsByRank, batch: TargetBatch | None) -> None:
        """Keep a batch; None, where this rank has no rows of it, is kept as well."""
        kept = None
        if batch is not None:
            nothing = torch.empty(0)
            rest = replace(batch, token_ids_N=nothing, aux_NC=nothing, last_NH=nothing, top_N=nothing)
            kept = _Kept(rest, batch.aux_NC.device, tuple(map(to_host, batch.on_device)))
        self._kept[_key(rows_by_rank)] = kept

    def take(self, rows_by_rank: RowsByRank) -> TargetBatch | None:
        """The batch on its device; it is kept no longer."""
        kept = self._kept.pop(_key(rows_by_rank))
        if kept is None:
            return None
        token_ids_N, aux_NC, last_NH, top_N = (to_device(copy.read(), kept.device) for copy in kept.copies)
        return replace(kept.rest, token_ids_N=token_ids_N, aux_NC=aux_NC, last_NH=last_NH, top_N=top_N)


def _key(rows_by_rank: RowsByRank) -> tuple[tuple[int, ...], ...]:
    return tuple(map(tuple, rows_by_rank))
