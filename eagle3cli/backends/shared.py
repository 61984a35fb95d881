"""One target over each group of processes that train: every one asks for its own rows, all of them run it together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from eagle3cli.backends.logits import Head
from eagle3cli.backends.target import LiveTarget, States, Tokens
from eagle3cli.runtime.ranks import Ranks


@dataclass(frozen=True)
class Shared:
    """A target in shards on the processes of a group; all of them must call :meth:`capture` equally often."""

    inner: LiveTarget
    ranks: Ranks
    group: Any
    """The process group that passes the rows on; its processes have neighbouring numbers."""
    size: int

    @property
    def path(self) -> str:
        """The folder or hub id it was loaded from."""
        return self.inner.path

    @property
    def aux_layers(self) -> tuple[int, ...]:
        """The layers whose outputs are captured."""
        return self.inner.aux_layers

    @property
    def embedding_VH(self) -> Tensor:
        """Weight of the input embedding, ``[V, H]``."""
        return self.inner.embedding_VH

    @property
    def device(self) -> torch.device:
        """Where it leaves states."""
        return self.inner.device

    @property
    def head(self) -> Head:
        """From last hidden states to logits."""
        return self.inner.head

    def capture(self, sequences: Sequence[Tokens]) -> States:
        """States of this process's sequences; none, where it only takes part for the others."""
        mine = [np.asarray(ids, dtype=np.int32) for ids in sequences]
        everyones: list[list[Tokens]] = [[] for _ in range(self.size)]
        with self.ranks.waiting():
            dist.all_gather_object(everyones, mine, group=self.group)
        states = self.inner.capture([ids for part in everyones for ids in part]) if any(everyones) else []
        before = sum(len(part) for part in everyones[: self.ranks.index % self.size])
        return states[before : before + len(mine)]


def share(inner: LiveTarget, ranks: Ranks, size: int) -> Shared:
    """The target as the training processes see it; every process makes all groups."""
    groups = [dist.new_group(list(range(at, at + size)), backend="gloo") for at in range(0, ranks.count, size)]
    return Shared(inner, ranks, groups[ranks.index // size], size)
