"""One target over each group of processes that train: every one asks for its own rows, all of them run it together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.distributed as dist

from eagle3cli.backends.target.target import Behind, LiveTarget, States, Tokens
from eagle3cli.runtime.distributed import Ranks


@dataclass(frozen=True)
class Shared(Behind):
    """A target in shards on the processes of a group; all of them must call :meth:`capture` equally often."""

    ranks: Ranks
    group: Any
    """The process group that passes the rows on; its processes have neighbouring numbers."""
    size: int

    def capture(self, sequences: Sequence[Tokens]) -> States:
        """States of this process's sequences; none, where it only takes part for the others."""
        mine = [np.asarray(ids, dtype=np.int32) for ids in sequences]
        everyones: list[list[Tokens]] = [[] for _ in range(self.size)]
        with self.ranks.waiting():
            dist.all_gather_object(everyones, mine, group=self.group)
        states = self.inner.capture([ids for part in everyones for ids in part]) if any(everyones) else []
        before = sum(len(part) for part in everyones[: self.ranks.rank % self.size])
        return states[before : before + len(mine)]


def share(inner: LiveTarget, ranks: Ranks, size: int) -> Shared:
    """The target as the training processes see it; every process makes all groups."""
    groups = [dist.new_group(list(range(at, at + size)), backend="gloo") for at in range(0, ranks.world_size, size)]
    return Shared(inner, ranks, groups[ranks.rank // size], size)
