from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eagle3cli.data.conversations.conversation import Conversation
from eagle3cli.data.prepare.merge import Merged, merge, split
from eagle3cli.data.prepare.row_table import APART, HELD_OUT, KEPT, RowTable, work_folder
from eagle3cli.data.prepare.split import sample
from eagle3cli.errors import UsageError
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.data import MergeSettings
from tests.failing import fails


def talk(number: int, prompt: str = "", finish: str = "stop") -> dict[str, Any]:
    messages = [{"role": "user", "content": prompt or f"q{number}"}, {"role": "assistant", "content": f"a{number}"}]
    return {"id": f"row{number}", "conversations": messages, "finish": [finish]}


def shard(folder: Path, start: int, rows: list[Any]) -> None:
    folder.mkdir(exist_ok=True)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / f"shard_{start}-{start + len(rows)}.jsonl").write_text(text, encoding="utf-8")


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line]


def go(tmp_path: Path, out: str = "out", **options: Any) -> Merged:
    return merge(MergeSettings(input_dir=tmp_path / "in", output_dir=tmp_path / out, **options), Silent())


def test_sizes_are_exact_and_the_split_is_seeded(tmp_path: Path) -> None:
    for start in (0, 50, 100):
        shard(tmp_path / "in", start, [talk(i) for i in range(start, start + 50)])
    sides = {}
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        go(tmp_path, name, eval_size=20, train_size=100, seed=seed)
        sides[name] = [[row["id"] for row in rows_of(tmp_path / name / f"{side}.jsonl")] for side in ("train", "eval")]
    assert sides["a"] == sides["b"] != sides["c"]
    train, held_out = sides["a"]
    assert (len(train), len(held_out)) == (100, 20)
    assert not set(train) & set(held_out)
    assert train == sorted(train, key=lambda name: int(name[3:]))


def test_a_tenth_is_held_out_unless_a_size_is_set(tmp_path: Path) -> None:
    shard(tmp_path / "in", 0, [talk(i) for i in range(40)])
    assert go(tmp_path, "a").summary["eval_rows"] == 4
    assert go(tmp_path, "b", eval_size=10).summary["eval_rows"] == 10
    assert go(tmp_path, "c", eval_size=0).summary["eval_rows"] == 0


def test_rows_are_copied_whole(tmp_path: Path) -> None:
    rows = [{**talk(i, prompt=f"\u2028 {i} 😀"), "extra": {"kept": True}} for i in range(3)]
    shard(tmp_path / "in", 0, rows)
    go(tmp_path, eval_size=0)
    assert rows_of(tmp_path / "out" / "train.jsonl") == rows


def test_everything_is_accounted_for(tmp_path: Path) -> None:
    shard(tmp_path / "in", 0, [talk(1), talk(2, finish="length"), {"id": "bad"}, talk(3)])
    shard(tmp_path / "in", 10, [{**talk(1), "id": "copy"}, talk(4), talk(5)])
    (tmp_path / "in" / "error_0-4.jsonl").write_text('{"id": "lost"}\n')
    (tmp_path / "in" / "notes.jsonl").write_text("not a shard\n")
    counts = go(tmp_path, drop_truncated=True, eval_size=1, train_size=2).summary
    counted = ("written", "rejected", "duplicates", "filtered", "left_out")
    assert [counts[name] for name in ("read", *counted)] == [7, 3, 1, 1, 1, 1]
    assert counts["failed_rows"] == 1
    places = {error["kind"]: error["place"] for error in rows_of(tmp_path / "out" / "errors.jsonl")}
    first, second = (str(tmp_path / "in" / name) for name in ("shard_0-4.jsonl", "shard_10-13.jsonl"))
    assert places == {"rejected": f"{first}:3", "filtered": f"{first}:2", "duplicate": f"{second}:1"}


@pytest.mark.parametrize("seed", range(5))
def test_equal_prompts_and_ids_stay_on_one_side(tmp_path: Path, seed: int) -> None:
    rows = [talk(i, prompt=f"prompt {i % 10}") for i in range(30)] + [talk(i) for i in range(30, 40)]
    rows[30]["id"] = rows[0]["id"]
    shard(tmp_path / "in", 0, rows)
    go(tmp_path, eval_size=10, seed=seed)
    train, held_out = (rows_of(tmp_path / "out" / f"{side}.jsonl") for side in ("train", "eval"))
    assert len(held_out) == 10
    for key in (lambda row: row["id"], lambda row: row["conversations"][0]["content"]):
        assert not {key(row) for row in train} & {key(row) for row in held_out}


def test_again_is_done_and_other_shards_are_noticed(tmp_path: Path) -> None:
    shard(tmp_path / "in", 0, [talk(i) for i in range(10)])
    assert not go(tmp_path).already
    assert go(tmp_path).already
    shard(tmp_path / "in", 10, [talk(i) for i in range(10, 20)])
    with fails("made-differently"):
        go(tmp_path)
    assert go(tmp_path, overwrite=True).summary["read"] == 20


def test_errors(tmp_path: Path) -> None:
    with fails("no-such-path"):
        go(tmp_path)
    (tmp_path / "in").mkdir()
    with fails("no-data-files", "shard_A-B"):
        go(tmp_path)
    shard(tmp_path / "in", 0, [talk(1), talk(2)])
    with fails("made-differently"):
        go(tmp_path, eval_size=5)
    with fails("made-differently"):
        go(tmp_path, train_size=5)


def dispositions(rows: RowTable) -> np.ndarray:
    return np.array([disposition for (disposition,) in rows.run("SELECT disposition FROM rows ORDER BY row")])


def add_rows(rows: RowTable, pairs: list[tuple[int, int]]) -> None:
    """A row for each (name, prompt)."""
    for line, (name, prompt) in enumerate(pairs):
        rows.add(Conversation("", ({"role": "user", "content": f"q{prompt}"},)), str(name), 0, line)


@settings(suppress_health_check=list(HealthCheck))
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=30), st.integers(0, 9))
def test_no_id_or_prompt_is_on_both_sides(tmp_path: Path, pairs: list[tuple[int, int]], seed: int) -> None:
    with work_folder(tmp_path) as work, RowTable(work, seed) as rows:
        add_rows(rows, pairs)
        try:
            split(rows, MergeSettings(eval_size=3))
        except UsageError:  # four rows that share nothing with any other always allow it
            alone = [pair for pair in pairs if all(sum(pair[i] == other[i] for other in pairs) == 1 for i in (0, 1))]
            assert len(alone) < 4
            return
        after = dispositions(rows)
    train, held_out = ([pairs[i] for i in np.flatnonzero(after == side)] for side in (KEPT, HELD_OUT))
    assert len(held_out) == 3
    for side in (0, 1):
        assert not {pair[side] for pair in train} & {pair[side] for pair in held_out}
    assert len(train) + len(held_out) + np.count_nonzero(after == APART) == len(pairs)


def test_a_group_too_large_to_be_held_out_is_cut(tmp_path: Path) -> None:
    shard(tmp_path / "in", 0, [talk(i, prompt=f"prompt {i % 3}") for i in range(12)])
    counts = go(tmp_path, eval_size=2).summary
    assert (counts["eval_rows"], counts["train_rows"], counts["left_out"]) == (2, 8, 2)
    assert counts["reasons"] == {"an equal prompt is held out": 2}


def test_every_choice_is_equally_likely(tmp_path: Path) -> None:
    drawn = np.zeros(6, int)
    with RowTable(tmp_path, 0) as rows:
        add_rows(rows, [(row, row) for row in range(8)])
        for seed in range(600):
            rows.run(f"UPDATE rows SET disposition = {KEPT}")
            rows.mark([0, 5], HELD_OUT)
            assert sample(rows, 2, seed) == 2
            drawn += dispositions(rows)[[1, 2, 3, 4, 6, 7]] == KEPT
    assert drawn.sum() == 1200
    assert drawn.min() > 150
    assert drawn.max() < 250


@pytest.mark.parametrize("number", ["NaN", "-Infinity", "1e999"])
def test_numbers_that_json_has_not_are_made_null(tmp_path: Path, number: str) -> None:
    shard(tmp_path / "in", 0, [talk(i) for i in range(3)])
    path = tmp_path / "in" / "shard_0-3.jsonl"
    raw = path.read_text(encoding="utf-8").replace('"id": "row1"', f'"id": "row1", "scores": [{{"s": {number}}}]')
    path.write_text(raw, encoding="utf-8")
    go(tmp_path, eval_size=0)
    rows = {row["id"]: row for row in rows_of(tmp_path / "out" / "train.jsonl")}
    assert rows["row1"]["scores"] == [{"s": None}]
    assert not {"NaN", "Infinity", "1e999"} & set((tmp_path / "out" / "train.jsonl").read_text().split('"s": '))
    (error,) = rows_of(tmp_path / "out" / "errors.jsonl")
    assert (error["kind"], error["place"]) == ("repaired", f"{path}:2")
    assert "too large made null" in error["reason"]


def test_filters_and_repairs(tmp_path: Path) -> None:
    refusing = talk(2)
    refusing["conversations"][1]["content"] = "I'm sorry, but I can't help with that."
    looping = talk(3)
    looping["conversations"][1]["content"] = "Yes. " + "and so on, " * 200
    shard(tmp_path / "in", 0, [talk(1), refusing, looping, talk(4)])
    with (tmp_path / "in" / "shard_0-4.jsonl").open("ab") as f:
        f.write(b"\xef\xbb\xbf" + json.dumps({**talk(5), "id": "x\ud83d"}).encode() + b",\r\n")
    counts = go(tmp_path, drop_loops=True, drop_refusals=True, eval_size=0).summary
    assert (counts["written"], counts["filtered"]) == (3, 2)
    assert counts["reasons"] == {"a reply is a refusal": 1, "a reply goes round in a loop": 1}
    assert [row["id"] for row in rows_of(tmp_path / "out" / "train.jsonl")] == ["row1", "row4", "x\ufffd"]
    places = {error["place"]: error["kind"] for error in rows_of(tmp_path / "out" / "errors.jsonl")}
    assert places[str(tmp_path / "in" / "shard_0-4.jsonl") + ":5"] == "repaired"
