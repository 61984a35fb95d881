from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eagle3cli.data import presets
from eagle3cli.data.prepare import Prepared, prepare
from eagle3cli.errors import DataError, UsageError
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.tables import Prepare


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
    done = prepare(Prepare(source=sources, output_path=tmp_path / "out", **options), Silent())
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
    assert done.own_data


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
    with pytest.raises(UsageError, match="already exists"):
        go(source, tmp_path, prompts_only=True)
    write(source, [talk(3)])
    with pytest.raises(UsageError, match="already exists"):
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
    with pytest.raises(UsageError, match="unknown source 'sharegp'") as unknown:
        go("sharegp", tmp_path)
    assert "did you mean 'sharegpt'" in str(unknown.value)
    with pytest.raises(DataError, match="no such file"):
        go("missing.jsonl", tmp_path)
    with pytest.raises(DataError, match="no such file"):
        go("ultrachat", tmp_path, data_path=tmp_path / "none.jsonl")
    empty = write(tmp_path / "text.jsonl", [{"text": "x"}])
    with pytest.raises(DataError, match="no usable rows"):
        go(empty, tmp_path)
    with pytest.raises(UsageError, match="names a file"):
        prepare(Prepare(source=(str(empty),), output_path=tmp_path / "x.jsonl"), Silent())


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
    assert not every.own_data
    assert every.summary["written"] == 4
    assert "breaks off" in rows_of(every.folder / "errors.jsonl")[-1]["reason"]
    quick = go("quickstart", tmp_path / "2")
    expected = [{"id": "a_0", "conversations": [{"role": "user", "content": "How do I sort a list?"}]}]
    assert rows_of(quick.folder / "train.jsonl") == expected
    assert quick.summary["left_out"] == 3
