"""A shard that is filled in any order by several processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eagle3cli.data.hidden_states.partial import PartialShard
from eagle3cli.data.hidden_states.shard import HEADER_ALIGNMENT, ShardShape, shard_header

SIZES = (5, 3, 8)


def shard_of(folder: Path, store: str = "store") -> PartialShard:
    return PartialShard(folder / "shard", ShardShape(shard_header(store, 0, SIZES), SIZES))


def blob(index: int) -> torch.Tensor:
    return torch.full((SIZES[index],), index + 1, dtype=torch.uint8)


def test_rows_come_in_any_order_and_another_process_sees_what_is_missing(tmp_path: Path) -> None:
    shard = shard_of(tmp_path)
    assert not shard.begun
    shard.begin()
    assert shard.begun
    assert shard.missing() == [0, 1, 2]
    shard.put(2, blob(2))
    shard.put(0, blob(0))
    again = shard_of(tmp_path)
    again.begin()
    assert again.missing() == [1]
    again.put(1, blob(1))
    assert shard.missing() == []
    shard.finish()
    assert not again.begun
    whole = (tmp_path / "shard").read_bytes()
    starts = shard.shape.starts
    rows = [whole[begin:end] for begin, end in zip(starts, starts[1:], strict=False)]
    assert rows == [bytes([index + 1] * size) for index, size in enumerate(SIZES)]


def test_a_row_of_another_size_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    shard = shard_of(tmp_path)
    shard.begin()
    with pytest.raises(ValueError, match="4 bytes, not 5"):
        shard.put(0, torch.ones(4, dtype=torch.uint8))
    assert shard.missing() == [0, 1, 2]


def test_what_another_store_or_a_cut_left_is_begun_anew(tmp_path: Path) -> None:
    other = shard_of(tmp_path, "another")
    other.begin()
    other.put(0, blob(0))
    shard = shard_of(tmp_path)
    assert not shard.begun
    shard.begin()
    assert shard.missing() == [0, 1, 2]
    shard.put(0, blob(0))
    with shard.part.open("r+b") as file:
        file.truncate(shard.shape.bytes - 1)
    assert not shard.begun


@pytest.mark.parametrize("rows", [1, 2, 7, 100])
def test_rows_begin_where_a_page_may(rows: int) -> None:
    assert len(shard_header("store", 0, [3] * rows)) % HEADER_ALIGNMENT == 0
