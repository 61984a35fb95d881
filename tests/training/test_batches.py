"""Rows of a batch dealt out to the ranks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.backends.batches.batch import TargetBatch, partition
from eagle3cli.training.batches import (
    Batches,
    Sampler,
    balance,
    micro_batches,
    micro_batches_by_rank,
    upcoming,
)

LENGTHS = st.lists(st.integers(1, 5000), min_size=1, max_size=40)


@given(LENGTHS, st.integers(1, 9), st.randoms())
def test_every_row_is_at_one_rank_and_keeps_its_place(lengths: list[int], ranks: int, random: object) -> None:
    rows = list(range(len(lengths)))
    random.shuffle(rows)  # type: ignore[attr-defined]
    dealt = partition(rows, lengths, ranks)
    assert len(dealt) == ranks
    assert sorted(row for share in dealt for row in share) == sorted(rows)
    for share in dealt:
        assert share == sorted(share, key=rows.index)
    if len(rows) >= ranks:
        assert all(dealt)


@given(LENGTHS, st.integers(1, 9))
def test_the_busiest_rank_is_at_most_a_third_above_the_best_there_is(lengths: list[int], ranks: int) -> None:
    rows = range(len(lengths))
    busiest = max(sum(lengths[row] for row in share) for share in partition(rows, lengths, ranks))
    least = max(max(lengths), sum(lengths) / ranks)
    assert busiest <= least * 4 / 3 + max(lengths) * (len(lengths) > ranks)
    assert 0 < balance([rows], lengths, ranks) <= 1


def test_equal_rows_are_dealt_out_evenly() -> None:
    assert partition([4, 2, 7, 1], [5] * 8, 2) == [[4, 7], [2, 1]]
    assert balance([[0, 1, 2]], [2, 2, 2], 2) == 6 / 8


@given(st.lists(st.integers(), max_size=20), st.none() | st.integers(1, 30))
def test_micro_batches_hold_every_row_once(rows: list[int], size: int | None) -> None:
    parts = micro_batches(rows, size)
    assert [row for part in parts for row in part] == rows
    assert all(0 < len(part) <= (size or len(rows)) for part in parts)


@given(LENGTHS, st.integers(1, 9), st.integers(1, 12_000), st.randoms())
def test_micro_batches_by_tokens(lengths: list[int], world_size: int, max_tokens: int, random: object) -> None:
    """Every row once, the budget held, the same each time, as many on every rank, the rows of a rank unchanged."""
    rows = list(range(len(lengths)))
    random.shuffle(rows)  # type: ignore[attr-defined]

    cut = micro_batches_by_rank(rows, lengths, world_size, None, max_tokens)
    assert cut == micro_batches_by_rank(rows, lengths, world_size, None, max_tokens)
    assert all(len(rows_by_rank) == world_size for rows_by_rank in cut)
    assert any(cut[-1]), "one rank needs them all"
    by_rank = [list(parts) for parts in zip(*cut, strict=True)]
    for parts, share in zip(by_rank, partition(rows, lengths, world_size), strict=True):
        assert sorted(row for part in parts for row in part) == sorted(share)
        assert all(len(part) < 2 or sum(lengths[row] for row in part) <= max_tokens for part in parts)
        lengths_in_order = [lengths[row] for part in parts for row in part]
        assert lengths_in_order == sorted(lengths_in_order, reverse=True), "neighbours by length"


@given(st.integers(1, 60), st.integers(1, 20), st.integers(0, 9), st.integers(1, 12_000))
def test_which_rows_form_a_step_does_not_depend_on_the_cut(
    rows: int, batch_size: int, step: int, max_tokens: int
) -> None:
    batch = Sampler(rows, batch_size, seed=1).batch(step)
    lengths = [1 + 37 * row % 2048 for row in range(rows)]
    parts = micro_batches(batch, None, lengths, max_tokens)
    assert sorted(row for part in parts for row in part) == sorted(batch)


@given(st.integers(1, 60), st.integers(1, 20), st.integers(1, 4), st.integers(1, 9))
def test_echoes_come_before_the_next_batches_and_again_in_the_next_epoch(
    rows: int, batch_size: int, factor: int, buffer: int
) -> None:
    """Each batch of an epoch as often as is asked for, those of a buffer together; a pure function of the step."""
    plain = Sampler(rows, batch_size, seed=3)
    sampler = Sampler(rows, batch_size, 3, factor, buffer)
    assert sampler.steps_per_epoch == factor * plain.steps_per_epoch
    for epoch in range(2):
        steps = iter(range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch))
        fresh = [plain.batch(epoch * plain.steps_per_epoch + at) for at in range(plain.steps_per_epoch)]
        for first in range(0, len(fresh), buffer):
            buffered = fresh[first : first + buffer]
            for echo in range(factor):
                taken = [next(steps) for _ in buffered]
                batches = [sampler.batch(step) for step in taken]
                assert sorted(batches) == sorted(buffered)
                assert echo or batches == buffered, "the first time they come as without echoes"
                assert {sampler.comes_again(step) for step in taken} == {echo < factor - 1}
                assert {sampler.epoch_of(step) for step in taken} == {epoch}
    seen = set[int]()
    for step in range(sampler.steps_per_epoch + 1):
        assert sampler.rows_seen(step) == len(seen)
        seen.update(sampler.batch(step))


class CountedSource:
    """States that say which call has made them."""

    lengths = (3,) * 14

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []

    def batch(self, rows: Sequence[int]) -> TargetBatch:
        """Three tokens a row."""
        self.calls.append(tuple(rows))
        size = 3 * len(rows)
        states = torch.full((size, 2), float(len(self.calls)))
        ids = torch.arange(size)
        bounds = tuple(range(0, size + 1, 3))
        return TargetBatch(ids, torch.ones(size, dtype=torch.bool), bounds, states, states[:, :1], ids, tuple(rows))


def test_the_target_runs_once_for_all_echoes_of_a_batch() -> None:
    source = CountedSource()
    batches = Batches(source, Sampler(14, 4, 0, 3, 2), micro_batch_size=2)
    made: dict[tuple[int, ...], float] = {}
    for step in range(12):
        for rows_by_rank in batches.micro_batches(step):
            batch = batches.states(step, rows_by_rank)
            assert batch is not None
            assert batch.rows == tuple(rows_by_rank[0])
            assert made.setdefault(batch.rows, float(batch.aux_NC[0, 0])) == float(batch.aux_NC[0, 0])
        assert len(batches.kept) <= 4, "two batches of two micro batches"
    assert len(source.calls) == len(set(source.calls)) == 7
    assert source.calls == read_ahead_of(batches, 0)
    assert len(batches.kept) == 0


def test_a_run_that_goes_on_amid_echoes_makes_their_states_once_more() -> None:
    source = CountedSource()
    batches = Batches(source, Sampler(14, 4, 0, 3, 2))
    for step in range(3, 12):  # the second batch of the first buffer, twice more
        for rows_by_rank in batches.micro_batches(step):
            batches.states(step, rows_by_rank)
    assert len(source.calls) == 4
    assert source.calls == read_ahead_of(batches, 3)
    assert len(batches.kept) == 0


def read_ahead_of(batches: Batches, step: int) -> list[tuple[int, ...]]:
    """What a source is told that it will be asked for, from a step on."""
    rows = upcoming(batches.sampler, step, batches.micro_batch_size, batches.source.lengths, batches.ranks, end=12)
    return list(map(tuple, rows))
