"""prepare, merge and cache as typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

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


def talk(number: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": f"question {number}"}, {"role": "assistant", "content": f"answer {number}"}]
    return {"id": f"row{number}", "conversations": messages}


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_prepare(tmp_path: Path, run_cli: RunCli) -> None:
    write(tmp_path / "in.jsonl", [{"q": f"question {i}", "a": "yes"} for i in range(40)])
    words = ("prepare", "in.jsonl", "--map", "user=q", "assistant=a", "--sample-size", 20, "--split-eval")
    done = run_cli(*words, "--json")
    assert (done.code, done.json["train_rows"], done.json["eval_rows"]) == (0, 19, 1)
    again = run_cli(*words)
    assert again.code == 0
    assert "already done" in again.out
    assert "next: eagle3 regenerate" in again.out
    other = run_cli(*words, "--seed", 1)
    assert other.code == 2
    assert "--overwrite" in other.err


def test_prepare_with_bad_rows(tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "in.jsonl").write_text(json.dumps(talk(1)) + '\n{"id": "broken\n')
    done = run_cli("prepare", "in.jsonl", "--output-path", "out")
    assert done.code == 3
    assert "rejected 1" in done.out
    assert "in.jsonl:2" in (tmp_path / "out" / "errors.jsonl").read_text()


def test_a_warning_is_no_reason_for_a_row_that_is_missing(tmp_path: Path, run_cli: RunCli) -> None:
    row = {"id": "long", "conversations": [{"role": "user", "content": "a " * 300_000}]}
    write(tmp_path / "in.jsonl", [talk(1), talk(1), row])
    done = run_cli("prepare", "in.jsonl", "--output-path", "out", "--json")
    assert sum(done.json["reasons"].values()) == done.json["duplicates"] == 1
    assert done.json["warnings"] == {"a message past nearly every context": 1}
    assert "1 kept, with a warning" in run_cli("prepare", "in.jsonl", "--output-path", "out").out


def test_data_cannot_steer_the_terminal(tmp_path: Path, run_cli: RunCli) -> None:
    said = talk(1)["conversations"]
    rows = [
        {"\x1b[2Jname)\x1b[31m": 1, "b": 2},
        {"id": "\x1b[2J", "conversations": [{"role": "\x1b[2J", "content": "x"}]},
        {"id": "\u202e", "conversations": [*said, {"role": "user", "content": [{"type": "\x1b]0;\x07"}]}]},
        talk(2),
    ]
    write(tmp_path / "in.jsonl", rows)
    done = run_cli("prepare", "in.jsonl", "--output-path", "out")
    assert "rejected 3" in done.out
    assert not set("\x1b\x07\u202e") & set(done.out + done.err)
    assert "1 x no conversation in the row; name the columns" in done.out


def test_rows_wrapped_in_an_object_are_told_from_rows_without_a_conversation(tmp_path: Path, run_cli: RunCli) -> None:
    (tmp_path / "in.json").write_text(json.dumps({"version": 1, "data": [talk(1), talk(2)]}, indent=1))
    done = run_cli("prepare", "in.json", "--output-path", "out")
    assert done.code == 1
    assert done.error == "no-rows"


def test_prepare_errors(tmp_path: Path, run_cli: RunCli) -> None:
    assert run_cli("prepare", "ultrachatt").code == 2
    missing = run_cli("prepare", "missing.jsonl")
    assert missing.code == 1
    assert "missing.jsonl" in missing.err


def test_merge(tmp_path: Path, run_cli: RunCli) -> None:
    write(tmp_path / "cache" / "regenerated" / "shard_0-20.jsonl", [talk(i) for i in range(20)])
    done = run_cli("merge", "--eval-size", 5, "--json")
    assert (done.code, done.json["train_rows"], done.json["eval_rows"]) == (0, 15, 5)
    assert len((tmp_path / "cache" / "dataset" / "eval.jsonl").read_text().splitlines()) == 5
    assert run_cli("merge", "--input-dir", "nowhere").code == 1
    mark = tmp_path / "marked" / "shard_0-2.jsonl"
    write(mark, [talk(i) for i in range(2)]).write_bytes(b"\xef\xbb\xbf" + mark.read_bytes())
    repaired = run_cli("merge", "--input-dir", "marked", "--output-dir", "out", "--eval-size", 0)
    assert repaired.code == 0
    assert "1 repaired: byte order mark removed\neach with its place and reason: out/errors.jsonl" in repaired.out
    too_many = run_cli("merge", "--eval-size", 50, "--output-dir", "other")
    assert too_many.code == 2
    assert too_many.error == "made-differently"


def test_cache_and_its_view(tmp_path: Path, target: Path, run_cli: RunCli) -> None:
    train = write(tmp_path / "train.jsonl", [talk(i) for i in range(12)])
    words = ("cache", "--target-model-path", target, "--train-data-path", train, "--draft-vocab-size", 64)
    done = run_cli(*words, "--view-train-data", 1, 2)
    assert done.code == 0, done.err
    assert "{+answer 0<|im_end|>+}" in done.out
    assert "row 2" in done.out
    assert "draft vocabulary: 64 of 320 tokens" in done.out
    again = run_cli(*words, "--json")
    assert again.code == 0
    assert not again.json["built"]
    assert again.json["train"]["rows"] == 12


def test_cache_errors(tmp_path: Path, target: Path, run_cli: RunCli) -> None:
    assert run_cli("cache", "--target-model-path", target).code == 2
    train = write(tmp_path / "train.jsonl", [talk(1), {"id": "bad"}])
    words = ("cache", "--train-data-path", train, "--target-model-path")
    assert run_cli(*words, target).code == 3
    wrong = run_cli(*words, tmp_path / "nowhere")
    assert wrong.code == 1
    assert "nowhere" in wrong.err
    template = run_cli(*words, target, "--chat-template", "lama3")
    assert template.code == 2
    assert "llama3" in template.err
