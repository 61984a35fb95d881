"""Which rows each step trains on, which of them each rank, and their target states: a pure function of seed and step.

So any step can be resumed, and how fast a rank is never decides what it trains on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import torch

from eagle3cli.backends.batches.batch import BatchSource, RowsByRank, TargetBatch
from eagle3cli.backends.batches.online import own_batch
from eagle3cli.backends.target.padding import similar_lengths
from eagle3cli.runtime.distributed import SINGLE_PROCESS, Ranks


@dataclass
class Sampler:
    """Epochs of shuffled rows cut into batches; the last batch of an epoch holds what is left."""

    rows: int
    batch_size: int
    seed: int
    _shuffled: tuple[int, list[int]] | None = field(default=None, repr=False, compare=False)
    """The epoch that was shuffled last, and its rows: every step of it reads the same list."""

    @property
    def steps_per_epoch(self) -> int:
        """Batches that show every row once."""
        return -(-self.rows // self.batch_size)

    def epoch_of(self, step: int) -> int:
        """Epoch (from 0) of a 0-based step."""
        return step // self.steps_per_epoch

    def shuffled(self, epoch: int) -> list[int]:
        """All rows in the order of one epoch."""
        if self._shuffled is None or self._shuffled[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._shuffled = (epoch, torch.randperm(self.rows, generator=generator).tolist())
        return self._shuffled[1]

    def batch(self, step: int) -> list[int]:
        """Rows of a 0-based step, on all ranks together."""
        epoch, at = divmod(step, self.steps_per_epoch)
        return self.shuffled(epoch)[at * self.batch_size : (at + 1) * self.batch_size]


@dataclass
class Batches:
    """A rank's micro batches of every step."""

    source: BatchSource
    sampler: Sampler
    micro_batch_size: int | None = None
    """Rows that go through the draft at once; None is all of a rank's."""
    ranks: Ranks = SINGLE_PROCESS
    max_tokens: int | None = None
    """Tokens that go through the draft at once, where rows are not counted."""

    def micro_batches(self, step: int) -> list[RowsByRank]:
        """The micro batches of a step."""
        rows = self.sampler.batch(step)
        return micro_batches_by_rank(
            rows, self.source.lengths, self.ranks.world_size, self.micro_batch_size, self.max_tokens
        )

    def states(self, rows_by_rank: RowsByRank) -> TargetBatch | None:
        """This rank's part of a micro batch; None where it has none. All ranks must ask for theirs."""
        return own_batch(self.source, rows_by_rank, self.ranks.rank)


def upcoming(
    sampler: Sampler,
    step: int,
    micro_batch_size: int | None,
    lengths: Sequence[int],
    ranks: Ranks,
    max_tokens: int | None = None,
    end: int | None = None,
) -> Iterator[Sequence[int]]:
    """Rows of every micro batch of a rank from a 0-based step on, as the trainer asks for them; it may have none.

    ``end`` is the step behind the last one, where it is known.
    """
    while end is None or step < end:
        rows = sampler.batch(step)
        cut = micro_batches_by_rank(rows, lengths, ranks.world_size, micro_batch_size, max_tokens)
        yield from (rows_by_rank[ranks.rank] for rows_by_rank in cut)
        step += 1


def micro_batches_by_rank(
    rows: Sequence[int],
    lengths: Sequence[int],
    world_size: int,
    micro_batch_size: int | None,
    max_tokens: int | None = None,
) -> list[RowsByRank]:
    """The micro batches of a batch; all ranks have equally many, so that some ranks' rows of the last may be none."""
    parts = partition(rows, lengths, world_size)
    by_rank = [micro_batches(part, micro_batch_size, lengths, max_tokens) for part in parts]
    return [list(rows_by_rank) for rows_by_rank in zip_longest(*by_rank, fillvalue=[])]


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


def micro_batches(
    rows: Sequence[int], size: int | None, lengths: Sequence[int] = (), max_tokens: int | None = None
) -> list[list[int]]:
    """A rank's rows cut into what goes through the draft at once.

    By ``size`` in their order, None is all of them; or neighbours by length with at most ``max_tokens`` tokens, which a
    longer row alone exceeds.
    """
    if max_tokens is not None:
        groups = similar_lengths([lengths[row] for row in rows], max_tokens=max_tokens)
        return [[rows[at] for at in group] for group in groups]
    size = size or max(1, len(rows))
    return [list(rows[at : at + size]) for at in range(0, len(rows), size)]


def balance(batches: Sequence[Sequence[int]], lengths: Sequence[int], world_size: int) -> float:
    """Share of the ranks' time that is work, over these batches: mean tokens of a rank by tokens of the busiest one."""
    busiest = total = 0
    for rows in batches:
        tokens = [sum(lengths[row] for row in part) for part in partition(rows, lengths, world_size)]
        busiest += max(tokens)
        total += sum(tokens)
    return total / max(1, busiest * world_size)
