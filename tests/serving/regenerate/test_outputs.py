"""Rows that end in any order stand in their shards in order, whatever moment the program was killed at."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.serving.regenerate.outputs import Outputs
from eagle3cli.serving.regenerate.shards import ReplyShard, RowOutcome, ShardFolder, failed

SHARDS = [ReplyShard(3, 7), ReplyShard(7, 11), ReplyShard(11, 13)]


def entry(row: int) -> RowOutcome:
    if row % 5 == 0:
        return failed(row, row + 1, f"r{row}", "why not")
    return RowOutcome(row, "generated", {"id": f"r{row}", "text": 'ü "value": {}\n\u2028'}, tokens=row)


def opened(folder: Path) -> Outputs:
    shards = ShardFolder(folder)
    shards.open({}, overwrite=False)
    return Outputs(shards, SHARDS)


def check(folder: Path) -> None:
    for shard in SHARDS:
        good = [json.loads(line) for line in (folder / f"shard_{shard.name}.jsonl").read_text().split("\n") if line]
        path = folder / f"error_{shard.name}.jsonl"
        bad = [json.loads(line) for line in path.read_text().split("\n") if line] if path.exists() else []
        rows = range(shard.first, shard.end)
        assert good == [entry(row).value for row in rows if row % 5]
        assert bad == [entry(row).value for row in rows if row % 5 == 0]
    assert not list(folder.glob(".part*"))
    counts = json.loads((folder / "manifest.json").read_text())["shards"]
    assert sum(shard["rows"] for shard in counts.values()) == 10
    assert sum(shard["errors"] for shard in counts.values()) == 2
    assert sum(shard["tokens"] for shard in counts.values()) == sum(row for row in range(3, 13) if row % 5)


@pytest.mark.slow
@given(st.permutations(range(3, 13)), st.lists(st.integers(0, 10), max_size=4), st.integers(0, 30))
def test_any_order_and_any_kills_give_the_same_shards(order: list[int], kills: list[int], torn: int) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for kill in (*kills, len(order)):
            outputs = opened(folder)
            with outputs.opened():
                left = [row for row in order if not outputs.is_done(row)]
                assert outputs.done == len(order) - len(left)
                for row in left[:kill]:
                    outputs.add(entry(row))
            for part in folder.glob(".part*"):  # what a kill in the middle of a write leaves
                with part.open("ab") as f:
                    f.write(b'{"row": 3, "by": "generated", "tok'[:torn])
        check(folder)


def test_a_kill_before_the_manifest_knows_of_a_shard(tmp_path: Path) -> None:
    folder = ShardFolder(tmp_path)
    folder.open({}, overwrite=False)
    part = folder.part(SHARDS[0])
    for row in range(3, 7):
        part.add(entry(row))
    part.close()
    (tmp_path / "shard_3-7.jsonl").write_text("half of a shard")
    outputs = opened(tmp_path)
    with outputs.opened():
        assert all(outputs.is_done(row) for row in range(3, 7))
        for row in range(7, 13):
            outputs.add(entry(row))
    check(tmp_path)


def test_a_part_file_that_a_finished_shard_left_is_dropped(tmp_path: Path) -> None:
    outputs = opened(tmp_path)
    with outputs.opened():
        for row in range(3, 13):
            outputs.add(entry(row))
    (tmp_path / ".part_3-7.jsonl").write_text("")
    with opened(tmp_path).opened():
        pass
    check(tmp_path)


def test_a_second_outcome_of_a_row_is_a_mistake(tmp_path: Path) -> None:
    outputs = opened(tmp_path)
    with outputs.opened():
        outputs.add(entry(4))
        with pytest.raises(AssertionError, match="two outcomes"):
            outputs.add(entry(4))
