"""Rows of a batch dealt out to the ranks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.training.batches import balance, micro_batches, partition

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
