"""Rows of a batch dealt out to the ranks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.training.batches import Sampler, balance, micro_batches, micro_batches_by_rank, partition

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
