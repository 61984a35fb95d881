"""The ranks that share every sequence: which they are, and their process group (``--context-parallel``)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch import distributed as dist

from eagle3cli.backends.batches.context import ContextShard, deal
from eagle3cli.errors import UsageError
from eagle3cli.runtime.distributed import Ranks
from eagle3cli.settings.training import TrainSettings


@dataclass(frozen=True)
class ContextGroup:
    """Neighbouring ranks that share sequences, of which this process is one."""

    rank: int
    size: int
    steps: int
    """Of the unroll."""
    group: Any
    ranks: Ranks
    """All ranks of the run."""

    def deal(self, cu_seqlens: tuple[int, ...], loss_mask_N: Tensor) -> ContextShard:
        """This rank's part of a packed batch with these sequences."""
        shard = deal(cu_seqlens, loss_mask_N, self.rank, self.size, steps=self.steps)
        return replace(shard, group=self.group, waiting=self.ranks.waiting)


def check_context(train: TrainSettings, world_size: int) -> None:
    """Raise UsageError where sequences cannot be dealt to so many ranks as the settings say."""
    size = train.context_parallel
    where = "--context-parallel"
    if size == 1:
        return
    if train.mode != "offline":
        fix = "capture the states first (eagle3 hidden-states), then train --mode offline"
        raise UsageError("a live target reads whole sequences", where=where, fix=fix)
    if world_size % size:
        what = f"{world_size} process{'es' if world_size > 1 else ''} cannot be grouped by {size}"
        raise UsageError(what, where=where, fix=f"start a multiple of {size}: --gpus {size}, or lower it")


def context_group(train: TrainSettings, ranks: Ranks) -> ContextGroup | None:
    """The group of this rank; None where each sequence is on one rank. All ranks must ask."""
    size = train.context_parallel
    if size == 1:
        return None
    own = ranks.rank // size
    groups = [dist.new_group([*range(first, first + size)]) for first in range(0, ranks.world_size, size)]
    return ContextGroup(ranks.rank % size, size, train.ttt_length, groups[own], ranks)
