"""Which rows each step trains on, which of them each rank, and their target states: a pure function of seed and step.

So any step can be resumed, and how fast a rank is never decides what it trains on.

A live target may take longer than the draft's part of a step. With data echoing (Choi et al., arXiv 1907.05550) its
states serve several steps: some batches are trained on as the target makes them, then again, in another order, from
memory, before the next ones come.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest

import torch

from eagle3cli.backends.batches.batch import BatchSource, RowsByRank, TargetBatch, partition
from eagle3cli.backends.batches.dealt import own_batch
from eagle3cli.backends.batches.keeping import StatesKeeper
from eagle3cli.backends.batches.kept import KeptBatches
from eagle3cli.backends.batches.prefetch import read_ahead
from eagle3cli.backends.target.padding import similar_lengths
from eagle3cli.runtime.distributed import SINGLE_PROCESS, Ranks
from eagle3cli.runtime.report import Reporter, Silent
from eagle3cli.settings.training import TrainSettings


@dataclass
class Sampler:
    """Epochs of shuffled rows cut into batches; the last batch of an epoch holds what is left."""

    rows: int
    batch_size: int
    seed: int
    echo_factor: int = 1
    """Steps on each batch of an epoch."""
    echo_buffer: int = 1
    """Batches that are trained on once before the first of them is again."""
    _shuffled: tuple[int, list[int]] | None = field(default=None, repr=False, compare=False)
    """The epoch that was shuffled last, and its rows: every step of it reads the same list."""

    @property
    def batches_per_epoch(self) -> int:
        """Batches that show every row once."""
        return -(-self.rows // self.batch_size)

    @property
    def steps_per_epoch(self) -> int:
        """Steps on all of these batches, echoes included."""
        return self.batches_per_epoch * self.echo_factor

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
        epoch = self.epoch_of(step)
        buffer, echo, place = self._echoed(step)
        if echo:
            # The same batches each time: a rank that has rows of one keeps their states.
            seed = (self.seed * 1_000_003 + epoch) * 1_000_003 + buffer.start * self.echo_factor + echo
            generator = torch.Generator().manual_seed(seed % 2**63)
            place = int(torch.randperm(len(buffer), generator=generator)[place])
        at = buffer[place]
        return self.shuffled(epoch)[at * self.batch_size : (at + 1) * self.batch_size]

    def comes_again(self, step: int) -> bool:
        """Whether the batch of a 0-based step is trained on once more in this epoch."""
        _, echo, _ = self._echoed(step)
        return echo < self.echo_factor - 1

    def rows_seen(self, steps: int) -> int:
        """Rows that the first ``steps`` steps train on, each counted once."""
        if steps == 0 or self.epoch_of(steps - 1) > 0:
            return min(steps, 1) * self.rows
        buffer, echo, place = self._echoed(steps - 1)
        batches = buffer.stop if echo else buffer.start + place + 1
        return min(batches * self.batch_size, self.rows)

    def _echoed(self, step: int) -> tuple[range, int, int]:
        """The buffer of a step (batches of its epoch), how often all of that were trained on before, and how many of it
        since."""
        at = step % self.steps_per_epoch
        first = at // (self.echo_buffer * self.echo_factor) * self.echo_buffer
        buffer = range(first, min(first + self.echo_buffer, self.batches_per_epoch))
        echo, place = divmod(at - first * self.echo_factor, len(buffer))
        return buffer, echo, place


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
    kept: KeptBatches = field(default_factory=KeptBatches)
    """States of the micro batches that come again."""
    context: int = 1
    """Neighbouring ranks that share every sequence."""
    whole_source: BatchSource | None = None
    """Where the rows are to be had whole, which ``source`` has a part of on each of those ranks."""
    keeper: StatesKeeper | None = None
    """Where the states of the first epoch go, and those of later ones come from."""
    report: Reporter = field(default_factory=Silent)
    _stored: BatchSource | None = field(default=None, repr=False)

    def micro_batches(self, step: int) -> list[RowsByRank]:
        """The micro batches of a step."""
        rows = self.sampler.batch(step)
        return micro_batches_by_rank(
            rows,
            self.source.lengths,
            self.ranks.world_size,
            self.micro_batch_size,
            self.max_tokens,
            self.context,
        )

    def states(self, step: int, rows_by_rank: RowsByRank) -> TargetBatch | None:
        """This rank's part of a micro batch of a step; None where it has none. All ranks must ask for theirs.

        What should have been kept but is not, as a run was resumed, is made again.
        """
        if self.is_stored(step):
            rows = rows_by_rank[self.ranks.rank]
            source = self._stored_source(step)
            return source.batch(rows) if rows else None
        if rows_by_rank in self.kept:
            batch = self.kept.take(rows_by_rank)
        else:
            batch = own_batch(self.source, rows_by_rank, self.ranks.rank)
        if self.sampler.comes_again(step):
            self.kept.put(rows_by_rank, batch)
        if self.keeper is not None and batch is not None:
            self.keeper.put(batch)
        return batch

    def is_stored(self, step: int) -> bool:
        """Whether the states of a step are read that the first epoch has kept."""
        return self.keeper is not None and self.sampler.epoch_of(step) > 0

    def close(self, step: int) -> None:
        """Before a 0-based step that nobody may take, close the store of states, if an epoch has filled it; all ranks
        must."""
        if self.keeper is not None and self.is_stored(step):
            self.keeper.finish(self._made_again, self.report)

    def _stored_source(self, step: int) -> BatchSource:
        """The store that the first epoch has filled, from a step on read ahead; all ranks come here together."""
        if self._stored is None:
            assert self.keeper is not None, "asked for at a step whose states are stored"
            self.close(step)
            source = self.keeper.source()
            cut = (self.micro_batch_size, source.lengths, self.ranks, self.max_tokens)
            self._stored = read_ahead(source, upcoming(self.sampler, step, *cut))
        return self._stored

    def _made_again(self, rows: Sequence[int]) -> Iterator[TargetBatch | None]:
        """This rank's part of some rows, live, as many at once as in a step."""
        size = self.sampler.batch_size
        for at in range(0, len(rows), size):
            cut = (self.ranks.world_size, self.micro_batch_size, self.max_tokens)
            for rows_by_rank in micro_batches_by_rank(rows[at : at + size], self.source.lengths, *cut):
                yield own_batch(self.source, rows_by_rank, self.ranks.rank)


def sampler_of(train: TrainSettings, rows: int) -> Sampler:
    """The order in which a run takes its rows."""
    if train.mode == "offline":
        return Sampler(rows, train.batch_size, train.seed)
    return Sampler(rows, train.batch_size, train.seed, train.echo_factor, train.echo_buffer)


def upcoming(
    sampler: Sampler,
    step: int,
    micro_batch_size: int | None,
    lengths: Sequence[int],
    ranks: Ranks,
    max_tokens: int | None = None,
    end: int | None = None,
    context: int = 1,
) -> Iterator[Sequence[int]]:
    """Rows of every micro batch of a rank from a 0-based step on, as the trainer asks for them; it may have none.

    Those that are kept for their echoes are not asked for again. ``end`` is the step behind the last one, where it is
    known.
    """
    kept = set[tuple[int, ...]]()
    while end is None or step < end:
        rows = sampler.batch(step)
        key = tuple(rows)
        if key not in kept:
            cut = micro_batches_by_rank(rows, lengths, ranks.world_size, micro_batch_size, max_tokens, context)
            yield from (rows_by_rank[ranks.rank] for rows_by_rank in cut)
        kept.discard(key)
        if sampler.comes_again(step):
            kept.add(key)
        step += 1


def micro_batches_by_rank(
    rows: Sequence[int],
    lengths: Sequence[int],
    world_size: int,
    micro_batch_size: int | None,
    max_tokens: int | None = None,
    context: int = 1,
) -> list[RowsByRank]:
    """The micro batches of a batch; all ranks have equally many, so that some ranks' rows of the last may be none.

    ``context`` neighbouring ranks share their rows, and hold as many times ``max_tokens`` between them.
    """
    parts = partition(rows, lengths, world_size // context)
    of_group = None if max_tokens is None else max_tokens * context
    by_group = [micro_batches(part, micro_batch_size, lengths, of_group) for part in parts]
    by_rank = [group for group in by_group for _ in range(context)]
    return [list(rows_by_rank) for rows_by_rank in zip_longest(*by_rank, fillvalue=[])]


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
