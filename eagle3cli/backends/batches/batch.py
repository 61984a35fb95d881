"""The one thing that online and offline training differ in: where a TargetBatch comes from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from eagle3cli.backends.batches.context import ContextShard

RowsByRank = Sequence[Sequence[int]]
"""Rows that go through the draft at once: of every rank its own."""


@dataclass(frozen=True)
class TargetBatch:
    """Some sequences side by side (packed, no padding) with what the frozen target says about them.

    ``N`` counts the tokens of all sequences, ``H`` is the target's hidden size, ``A`` the number of auxiliary layers.
    """

    token_ids_N: Tensor
    """int64."""
    loss_mask_N: Tensor
    """bool: the target wrote this token. In the host's memory, where the positions of a step are planned."""
    cu_seqlens: tuple[int, ...]
    """Sequence b is ``cu_seqlens[b]:cu_seqlens[b+1]``; the first is 0, the last is N."""
    aux_NC: Tensor
    """``[N, A*H]``: outputs of the auxiliary layers, low to high, side by side."""
    last_NH: Tensor
    """``[N, H]``: what the head reads. Valid at the positions of ``data.store_rows.teacher_positions``."""
    top_N: Tensor
    """int64: the target's most likely next token over its whole vocabulary, where last_NH is valid, else -1."""
    rows: tuple[int, ...]
    """Row number of each sequence in the data it came from."""
    top_host_N: Tensor | None = None
    """``top_N`` in the host's memory, where it is there without waiting for the device."""
    shard: ContextShard | None = None
    """Where the sequences are dealt to several ranks: this one's part. N counts the tokens that it holds then, and
    ``cu_seqlens`` bounds its pieces."""

    @property
    def own_tokens(self) -> int:
        """Tokens that no other rank counts."""
        return len(self.token_ids_N) if self.shard is None else len(self.shard.own_M)

    @property
    def on_device(self) -> tuple[Tensor, ...]:
        """What does not stay in the host's memory."""
        return self.token_ids_N, self.aux_NC, self.last_NH, self.top_N


class BatchSource(Protocol):
    """Rows of a data set, with the target's states made live or read from disk."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of every row."""

    def batch(self, rows: Sequence[int]) -> TargetBatch:
        """The states of these rows, packed in the order given. Processes that share a target ask for the same rows."""


def partition(rows: Sequence[int], lengths: Sequence[int], world_size: int) -> list[list[int]]:
    """The rows of every rank, each row at one rank, with about as many tokens for each; a rank's rows keep their order.

    The longest row goes first, always to the rank that has the fewest tokens (Graham's rule: at most a third above the
    best there is). With fewer rows than ranks some get none.
    """
    tokens = [0] * world_size
    owner = dict[int, int]()
    for at in sorted(range(len(rows)), key=lambda i: (-lengths[rows[i]], i)):
        owner[at] = min(range(world_size), key=lambda rank: (tokens[rank], rank))
        tokens[owner[at]] += lengths[rows[at]]
    return [[row for at, row in enumerate(rows) if owner[at] == rank] for rank in range(world_size)]
