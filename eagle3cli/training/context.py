"""The ranks that share every sequence: which they are, and their process group (``--context-parallel``)."""

from __future__ import annotations

from torch import distributed as dist

from eagle3cli.backends.batches.context import ContextGroup
from eagle3cli.errors import UsageError
from eagle3cli.runtime.distributed import Ranks
from eagle3cli.settings.training import TrainSettings


def can_share(size: int, tp_size: int) -> bool:
    """Whether groups of ``size`` ranks that share sequences fit groups of ``tp_size`` that share a target."""
    return size % tp_size == 0 or tp_size % size == 0


def check_context(train: TrainSettings, world_size: int, tp_size: int = 1) -> None:
    """Raise UsageError where sequences cannot be dealt to so many ranks as the settings say.

    ``tp_size`` of the ranks share a live target, 1 where it is elsewhere.
    """
    size = train.context_parallel
    where = "--context-parallel"
    if size == 1:
        return
    if train.mode == "online" and not can_share(size, tp_size):
        what = f"groups of {size} that share sequences cut through groups of {tp_size} that share a target"
        raise UsageError("process-count", what, where=where, fix=f"use a multiple or a divisor of --tp-size {tp_size}")
    if world_size % size:
        what = f"{world_size} process{'es' if world_size > 1 else ''} cannot be grouped by {size}"
        raise UsageError(
            "process-count", what, where=where, fix=f"start a multiple of {size}: --gpus {size}, or lower it"
        )


def context_group(train: TrainSettings, ranks: Ranks) -> ContextGroup | None:
    """The group of this rank; None where each sequence is on one rank. All ranks must ask."""
    size = train.context_parallel
    if size == 1:
        return None
    own = ranks.rank // size
    groups = [dist.new_group([*range(first, first + size)]) for first in range(0, ranks.world_size, size)]
    return ContextGroup(ranks.rank % size, size, train.ttt_length, groups[own], ranks)
