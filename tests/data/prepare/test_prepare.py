from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eagle3cli.data.prepare.prepare import Prepared, prepare
from eagle3cli.data.sources import presets
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.data import PrepareSettings
from tests.failing import fails


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().decode().split("\n") if line]


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def talk(number: int, turns: int = 1, words: int = 3) -> dict[str, Any]:
    pair = [{"role": "user", "content": f"q{number} " + "w " * words}, {"role": "assistant", "content": "a"}]
    return {"id": f"row{number}", "conversations": pair * turns}


def go(source: Path | str | list[Path | str], tmp_path: Path, **options: Any) -> Prepared:
    sources = tuple(map(str, source if isinstance(source, list) else [source]))
    done = prepare(PrepareSettings(source=sources, output_path=tmp_path / "out", **options), Silent())
    counts = done.summary
    dropped = counts["rejected"] + counts["duplicates"] + counts["filtered"] + counts["left_out"]
    assert counts["read"] == counts["written"] + dropped
    assert len(rows_of(done.folder / "train.jsonl")) == counts["train_rows"]
    errors = rows_of(done.folder / "errors.jsonl")
    gone = [error for error in errors if error["kind"] not in ("repaired", "warning")]
    assert len(gone) == counts["rejected"] + counts["duplicates"] + counts["filtered"]
    assert all(error["place"] and error["reason"] for error in errors)
    return done


def test_duplicates_ids_and_bad_rows_are_accounted_for(tmp_path: Path) -> None:
    twice = {**talk(1), "id": "other"}
    same_id = {**talk(2), "id": "row1"}
    source = write(tmp_path / "in.jsonl", [talk(1), twice, same_id, {"id": "bad"}, talk(3)])
    done = go(source, tmp_path)
    names = [row["id"] for row in rows_of(done.folder / "train.jsonl")]
    assert [name.partition("~")[0] for name in names] == ["row1", "row1", "row3"]
    assert len(set(names)) == 3
    errors = {e["place"]: (e["kind"], e["reason"]) for e in rows_of(done.folder / "errors.jsonl")}
    assert errors[f"{source}:2"] == ("duplicate", f"duplicate of {source}:1")
    assert errors[f"{source}:3"] == ("repaired", "id made unique")
    assert errors[f"{source}:4"][0] == "rejected"
    assert len(errors) == 3


def test_the_shared_dirty_rows(shared: Path, tmp_path: Path) -> None:
    done = go(shared / "data" / "bad_rows.jsonl", tmp_path)
    assert done.summary["read"] == 18
    assert done.summary["rejected"] == 6


@pytest.mark.slow
def test_the_shared_sharegpt_array(shared: Path, tmp_path: Path) -> None:
    done = go(shared / "data" / "sharegpt_raw.json", tmp_path)
    assert done.summary["read"] == 2000
    assert done.summary["reasons"]["no messages"] == 44
    ids = [row["id"] for row in rows_of(done.folder / "train.jsonl")]
    assert len(set(ids)) == len(ids)


def test_ultrachat_from_a_local_file(shared: Path, tmp_path: Path) -> None:
    file = shared / "data" / "ultrachat_like_from_sharegpt.jsonl"
    done = go("ultrachat", tmp_path, data_path=file)
    assert done.summary["written"] == 20
    assert rows_of(done.folder / "train.jsonl")[0]["id"] == rows_of(file)[0]["prompt_id"]


def test_sampling_and_splitting_are_seeded_and_exact(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [talk(i) for i in range(100)])
    options = {"sample_size": 40, "split_eval": True}
    first = go(source, tmp_path / "1", seed=1, **options)
    again = go(source, tmp_path / "2", seed=1, **options)
    other = go(source, tmp_path / "3", seed=2, **options)
    names = [
        [{row["id"] for row in rows_of(done.folder / file)} for file in ("train.jsonl", "eval.jsonl")]
        for done in (first, again, other)
    ]
    assert names[0] == names[1] != names[2]
    assert [len(side) for side in names[0]] == [38, 2]
    assert not names[0][0] & names[0][1]


def test_filters(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [talk(1), talk(2, turns=3), talk(3, turns=2, words=50)])
    done = go(source, tmp_path, min_turns=2, max_turns=2, max_prompt_words=20)
    assert done.summary["filtered"] == 2
    assert [len(row["conversations"]) for row in rows_of(done.folder / "train.jsonl")] == [4]


def test_prompts_only_and_mapping(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"q": "hello", "a": "hi"}, {"q": "hello", "a": "other"}])
    done = go(source, tmp_path, prompts_only=True, map=("user=q", "assistant=a"))
    rows = rows_of(done.folder / "train.jsonl")
    assert [row["conversations"] for row in rows] == [[{"role": "user", "content": "hello"}]]
    assert rows[0]["id"] == "in-1"


def test_the_same_command_again_is_done_and_another_is_refused(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [talk(1), talk(2)])
    assert not go(source, tmp_path).already
    before = (tmp_path / "out" / "train.jsonl").stat()
    assert go(source, tmp_path).already
    assert (tmp_path / "out" / "train.jsonl").stat() == before
    with fails("made-differently"):
        go(source, tmp_path, prompts_only=True)
    write(source, [talk(3)])
    with fails("made-differently"):
        go(source, tmp_path)
    assert go(source, tmp_path, overwrite=True).summary["written"] == 1


def test_an_interrupted_run_is_done_again(tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [talk(1), talk(2)])
    go(source, tmp_path)
    (tmp_path / "out" / "prepare.json").write_text('{"state": "unfinished"}')
    (tmp_path / "out" / ".rows.tmp-999999999").write_text("left by a killed run")
    assert not go(source, tmp_path).already
    assert not list((tmp_path / "out").glob(".*"))


def test_errors(tmp_path: Path) -> None:
    with fails("unknown-name") as unknown:
        go("sharegp", tmp_path)
    assert "did you mean 'sharegpt'" in str(unknown.value)
    with fails("no-such-path"):
        go("missing.jsonl", tmp_path)
    with fails("no-such-path"):
        go("ultrachat", tmp_path, data_path=tmp_path / "none.jsonl")
    empty = write(tmp_path / "text.jsonl", [{"text": "x"}])
    with fails("no-rows") as unusable:
        go(empty, tmp_path)
    assert "errors.jsonl" in (unusable.value.fix or "")
    assert len(rows_of(tmp_path / "out" / "errors.jsonl")) == 1
    with fails("not-a-file"):
        prepare(PrepareSettings(source=(str(empty),), output_path=tmp_path / "x.jsonl"), Silent())


def test_a_preset_reads_the_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "fake_sharegpt" / "data"
    folder.mkdir(parents=True)
    (folder.parent / "__init__.py").write_text("raise RuntimeError('the package must not be imported')")
    turns = [{"from": "human", "value": "How do I sort a list?"}, {"from": "gpt", "value": "With sorted."}]
    rows = [
        {"id": "a_0", "conversations": turns},
        {"id": "b_1", "conversations": turns[:1] * 2},
        {"id": "c_0", "conversations": [{"from": "human", "value": "short"}]},
        {"id": "d_0", "conversations": turns[::-1]},
    ]
    (folder / "raw.json").write_text(json.dumps(rows, indent=2)[:-1] + ', {"id": "cut')
    monkeypatch.syspath_prepend(str(tmp_path))
    package = presets.Package("fake_sharegpt", "data/raw.json", "pip install fake")
    for name in ("sharegpt", "quickstart"):
        monkeypatch.setitem(
            presets.PRESETS, name, presets.Preset(**{**vars(presets.PRESETS[name]), "package": package})
        )
    monkeypatch.setattr(presets, "files", lambda _: tmp_path)
    every = go("sharegpt", tmp_path / "1")
    assert every.summary["written"] == 4
    assert "breaks off" in rows_of(every.folder / "errors.jsonl")[-1]["reason"]
    quick = go("quickstart", tmp_path / "2")
    expected = [{"id": "a_0", "conversations": [{"role": "user", "content": "How do I sort a list?"}]}]
    assert rows_of(quick.folder / "train.jsonl") == expected
    assert quick.summary["left_out"] == 3
    (tmp_path / "data").mkdir()
    with gzip.open(tmp_path / "data" / "quickstart_replies.jsonl.gz", "wt") as f:
        f.write('{"target": "t"}\n{"id": "d_0"}\n')
    recorded = go("quickstart", tmp_path / "3")
    assert ids_of(recorded) == ["d_0"], "the middle of a conversation, whose reply is recorded"


def ids_of(done: Prepared, file: str = "train.jsonl") -> list[str]:
    return [row["id"] for row in rows_of(done.folder / file)]


def test_several_sources_are_joined_in_order(tmp_path: Path) -> None:
    first = write(tmp_path / "a.jsonl", [talk(1), talk(2)])
    (tmp_path / "b").mkdir()
    write(tmp_path / "b" / "1.jsonl", [talk(2), {"prompt": "q3"}])
    done = go([first, tmp_path / "b"], tmp_path)
    assert ids_of(done) == ["row1", "row2", "b-2"]
    assert done.summary["sources"] == {"a": 2, "b": 1}
    assert done.summary["duplicates"] == 1


def test_weights_and_sizes_are_exact_and_mixed(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", [talk(i) for i in range(100)])
    b = write(tmp_path / "b.jsonl", [talk(i) for i in range(100, 130)] + [talk(0), talk(1)])
    done = go([f"{a}:0.6", f"{b}:0.4"], tmp_path, sample_size=50, split_eval=True)
    assert done.summary["sources"] == {"a": 30, "b": 20}
    assert (done.summary["train_rows"], done.summary["eval_rows"], done.summary["duplicates"]) == (48, 2, 2)
    both = ids_of(done)
    assert 2 <= sum(int(name[3:]) >= 100 for name in both[:15]) <= 13
    again = go([f"{a}:3", f"{b}:2"], tmp_path / "again", sample_size=50, split_eval=True)
    assert ids_of(again) == both
    whole = go([f"{a}:0.5", f"{b}:0.5"], tmp_path / "whole")
    assert whole.summary["sources"] == {"a": 30, "b": 30}
    assert whole.summary["reasons"]["not sampled"] == 70


def test_a_source_too_small_for_its_weight_is_told(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", [talk(i) for i in range(10)])
    b = write(tmp_path / "b.jsonl", [talk(i) for i in range(100, 200)])
    report = Silent()
    options = PrepareSettings(source=(f"{a}:0.5", f"{b}:0.5"), output_path=tmp_path / "out", sample_size=100)
    assert prepare(options, report).summary["sources"] == {"a": 10, "b": 10}
    assert "a has 10 usable rows, so 20 rows keep the weights" in report.warnings[0]


def test_near_duplicates_on_demand(tmp_path: Path) -> None:
    long = talk(1, words=60)
    near = {"id": "near", "conversations": [{**m, "content": m["content"] + " end"} for m in long["conversations"]]}
    words = " ".join(f"word{i}" for i in range(40))
    rows = [{"id": "a", "prompt": words}, {"id": "b", "prompt": words.replace("word20", "other")}, long, near]
    source = write(tmp_path / "in.jsonl", rows)
    assert go(source, tmp_path / "1").summary["duplicates"] == 0
    done = go(source, tmp_path / "2", near_duplicates=0.8)
    assert "b" not in ids_of(done)
    reasons = {e["id"]: e["reason"] for e in rows_of(done.folder / "errors.jsonl")}
    assert reasons["b"] == f"near duplicate of {source}:1 (85% of the words are the same)"
    assert done.summary["reasons"]["near duplicate"] == done.summary["duplicates"]


def test_filters_of_replies(tmp_path: Path) -> None:
    def said(number: int, reply: str, **more: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": f"q{number}"}, {"role": "assistant", "content": reply}]
        return {"id": f"row{number}", "conversations": messages, **more}

    rows = [said(1, "yes"), said(2, "I'm sorry, but I cannot help with that."), said(3, "ho " * 999)]
    source = write(tmp_path / "in.jsonl", [*rows, said(4, "cut", finish=["length"])])
    assert go(source, tmp_path / "1").summary["written"] == 4
    done = go(source, tmp_path / "2", drop_truncated=True, drop_loops=True, drop_refusals=True)
    assert ids_of(done) == ["row1"]
    assert sorted(done.summary["reasons"].values()) == [1, 1, 1]


def test_turns_alone_stay_turns(shared: Path, tmp_path: Path) -> None:
    source = write(tmp_path / "in.jsonl", [{"id": 1, "turns": ["q1", "q2"]}, {"turns": ["q3"], "reference": ["a3"]}])
    rows = rows_of(go(source, tmp_path).folder / "train.jsonl")
    assert [[m["role"] for m in row["conversations"]] for row in rows] == [["user", "user"], ["user", "assistant"]]
    done = go(shared / "data" / "mt_bench.jsonl", tmp_path / "mt")
    assert done.summary["written"] == 80


def test_equal_prompts_are_held_out_together(tmp_path: Path) -> None:
    rows = [{"id": f"r{i}", "prompt": f"q{i // 3}", "response": f"a{i}"} for i in range(90)]
    source = write(tmp_path / "in.jsonl", rows)
    done = go(source, tmp_path, split_eval=True)
    prompts = [
        {row["conversations"][0]["content"] for row in rows_of(done.folder / file)}
        for file in ("train.jsonl", "eval.jsonl")
    ]
    assert not prompts[0] & prompts[1]
    assert done.summary["eval_rows"] == 4
    assert done.summary["reasons"] == {"an equal prompt is held out": 2}
    same = write(tmp_path / "same.jsonl", [{"prompt": "q", "response": f"a{i}"} for i in range(3)])
    assert go(same, tmp_path / "same", split_eval=True).summary["train_rows"] == 3


class FakeHub:
    """Stands in for `datasets`: a stream of rows that counts how many were taken."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows, self.taken = rows, 0

    def load_dataset(self, name: str, subset: str | None, *, split: str, streaming: bool) -> FakeHub:
        assert streaming
        if subset is None:
            raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['main']")
        if split != "train":
            raise ValueError(f"Bad split: {split}. Available splits: ['train']")
        return self

    def shuffle(self, seed: int, buffer_size: int) -> FakeHub:
        return self

    def __iter__(self) -> Iterator[Any]:
        for row in self.rows:
            self.taken += 1
            yield row


def test_a_hub_sample_reads_only_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    rows = [{"question": f"q{i // 2}", "answer": "a"} for i in range(1000)]  # each is there twice
    hub = FakeHub(rows)
    monkeypatch.setattr(datasets, "load_dataset", hub.load_dataset)
    done = go("gsm8k", tmp_path / "1", sample_size=20)
    assert (done.summary["written"], hub.taken) == (20, 39)
    assert ids_of(done)[:2] == ["gsm8k-1", "gsm8k-3"]
    a = write(tmp_path / "a.jsonl", [talk(i) for i in range(100)])
    mixed = go([f"{a}:1", "gsm8k:1"], tmp_path / "2", sample_size=20)
    assert mixed.summary["sources"] == {"a": 10, "gsm8k": 10}
    with fails("hub-unreachable") as error:
        go("OWNER/NAME", tmp_path / "3")
    assert "--subset" in str(error.value)
    with fails("hub-unreachable") as error:
        go("OWNER/NAME", tmp_path / "3", subset="main", split="test")
    assert "--split" in str(error.value)


def test_a_hub_out_of_reach_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    with fails("hub-unreachable"):
        go("perfectblend", tmp_path)
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {"prepare.json"}


def test_the_result_is_not_its_own_source(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [talk(1)])
    assert go(tmp_path, tmp_path).summary["written"] == 1
    assert go(tmp_path, tmp_path, overwrite=True).summary["read"] == 1
    with fails("conflicting-options"):
        prepare(
            PrepareSettings(source=(str(tmp_path / "out" / "train.jsonl"),), output_path=tmp_path / "out"), Silent()
        )
