"""eagle3 view and view-train-data as typed."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.tiny import tiny_config, tiny_tokenizer

if TYPE_CHECKING:
    from tests.conftest import RunCli


@pytest.fixture
def target(tmp_path: Path) -> Path:
    folder = tmp_path / "target"
    tiny_tokenizer().save_pretrained(folder)
    tiny_config("qwen2").save_pretrained(folder)
    return folder


def write(path: Path, count: int) -> Path:
    with path.open("w") as f:
        for i in range(count):
            said = [{"role": "user", "content": f"question {i}"}, {"role": "assistant", "content": f"answer {i}"}]
            f.write(json.dumps({"id": f"row{i}", "conversations": said}) + "\n")
    return path


@pytest.mark.parametrize("command", ["view", "view-train-data"])
def test_as_typed_beside_a_settings_file(tmp_path: Path, target: Path, run_cli: RunCli, command: str) -> None:
    write(tmp_path / "train.jsonl", 3)
    (tmp_path / "eagle3.toml").write_text('[target]\nmodel_path = "target"\n[data]\ntrain_path = "train.jsonl"\n')
    done = run_cli(command, 1, 2)
    assert done.code == 0, done.err
    assert "{+answer 0<|im_end|>+}" in done.out
    assert "{+answer 1<|im_end|>+}" in done.out
    assert "behind '<|im_start|>assistant\\n' from 'a' to" in done.out
    told = run_cli(command, 3, "--json", "--html", "page.html")
    assert told.json["rows"][0]["id"] == "row2"
    assert "answer 2" in re.sub("<[^>]*>", "", (tmp_path / "page.html").read_text())
    assert run_cli(command, "row1", "--whitespace", "--ids", "--json").json["rows"][0]["row"] == 2
    assert "answer·0" in run_cli(command, "--id", "row0", "--whitespace").out
    assert not (tmp_path / "cache").exists(), "looking at rows leaves nothing behind"


def test_rows_named_in_the_settings_file(tmp_path: Path, target: Path, run_cli: RunCli) -> None:
    write(tmp_path / "train.jsonl", 3)
    (tmp_path / "eagle3.toml").write_text(
        '[target]\nmodel_path = "target"\n[data]\ntrain_path = "train.jsonl"\n[view]\nrows = [2, "row2"]\n'
    )
    assert [row["row"] for row in run_cli("view", "--json").json["rows"]] == [2, 3]


def test_a_page_is_replaced_and_nothing_else_is(tmp_path: Path, target: Path, run_cli: RunCli) -> None:
    words = ("view", 2, "--path", write(tmp_path / "rows.jsonl", 2), "--model-path", target, "--html")
    assert run_cli(*words, "page.html").code == 0
    assert run_cli(*words, "page.html").code == 0
    (tmp_path / "notes.html").write_text("my notes")
    assert run_cli(*words, "notes.html").code == 2
    assert (tmp_path / "notes.html").read_text() == "my notes"
    folder = run_cli(*words, tmp_path)
    assert folder.code == 2
    assert folder.error == "foreign-files"


def test_what_is_not_there_is_told(tmp_path: Path, target: Path, run_cli: RunCli) -> None:
    words = ("--path", write(tmp_path / "rows.jsonl", 2), "--model-path", target)
    beyond = run_cli("view", 9, *words)
    assert beyond.code == 2
    assert beyond.error == "no-such-row"
    assert "9" in beyond.err
    assert "1" in beyond.err
    assert "2" in beyond.err
    assert run_cli("view", "row9", *words).error == "no-such-row"
    assert "row9" in run_cli("view", "row9", *words).err
    without = run_cli("view", 1)
    assert without.code == 2
    assert "train_path" in without.err


@pytest.mark.slow
def test_a_hidden_state_store(tmp_path: Path, tiny: Path, run_cli: RunCli) -> None:
    data = write(tmp_path / "train.jsonl", 4)
    done = run_cli("hidden-states", "--model-path", tiny, "--data-path", data, "--draft-vocab-size", 64)
    assert done.code == 0, done.err
    words = ("view", "--path", "cache/hidden_states/train")
    by_id = run_cli(*words, "row2", 1)  # the tokenizer is the target's that was captured
    assert by_id.code == 0, by_id.err
    assert "row 3 (id row2, line 3)" in by_id.out
    assert "[user]" in by_id.out
    with_cache = run_cli(*words, 2, "--json").json
    assert with_cache["draft_vocab"] == 64
    shutil.rmtree(tmp_path / "cache" / "processed_dataset")
    alone = run_cli(*words, 2, "--json").json
    trained = [[run["text"] for run in told["rows"][0]["runs"] if run["trained"]] for told in (alone, with_cache)]
    assert trained == [["answer 1<|im_end|>"]] * 2
    assert {run["role"] for run in alone["rows"][0]["runs"]} == {"", "assistant"}
    nameless = run_cli(*words, "row2")
    assert nameless.code == 2
    assert nameless.error == "conflicting-options"
    assert len(run_cli(*words, "--random", 2, "--json").json["rows"]) == 2
