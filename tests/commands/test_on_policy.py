"""Rows that hold somebody else's replies are told from the target's own: by every command, as typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from eagle3cli.data.tokens import on_policy
from tests.tiny import TEXT

if TYPE_CHECKING:
    from tests.conftest import RunCli

QUESTIONS = [f"question {i}: {text[:20]}" for i, text in enumerate(TEXT * 4)]


def mixture(run_cli: RunCli, tiny: Path, folder: Path) -> None:
    """``mixed/train.jsonl``: half of the rows with the target's greedy replies, half with sentences of the test's."""
    rows = [{"id": f"p{i}", "conversations": [{"role": "user", "content": q}]} for i, q in enumerate(QUESTIONS)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = run_cli(
        "regenerate", "--engine", "local", "--input-path", "prompts.jsonl", "--target-model-path", tiny,
        "--max-tokens", "24", "--output-dir", "own",
    )  # fmt: skip
    assert made.code == 0, made.err
    foreign = [
        {"id": f"f{i}", "conversations": [*row["conversations"], {"role": "assistant", "content": TEXT[i % len(TEXT)]}]}
        for i, row in enumerate(rows)
    ]
    (folder / "foreign.jsonl").write_text("".join(json.dumps(row) + "\n" for row in foreign))
    assert run_cli("prepare", "own", "foreign.jsonl", "--output-path", "mixed").code == 0


@pytest.mark.slow
def test_a_mixture_is_told_apart_by_source(
    run_cli: RunCli, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mixture(run_cli, tiny, tmp_path)
    data = ("--train-data-path", "mixed/train.jsonl", "--target-model-path", tiny, "--draft-vocab-size", "200")
    before = run_cli("view", "--worst", "2", *data[:4])
    assert before.code == 2
    assert before.error == "not-measured"
    few = ("--num-epochs", "1", "--ttt-length", "2", "--set", "train.log_interval=1")
    trained = run_cli("train", *data, *few)
    assert trained.code == 0, trained.err
    assert "replies that are not the target's own (foreign: " in trained.err
    assert "own: " not in trained.err.partition("replies that are not the target's own")[2].partition("\n")[0][:40]
    known = json.loads((tmp_path / "runs" / "train" / "run.json").read_text())["on_policy"]["train"]
    shares = {name: part["share"] for name, part in known["by_source"].items()}
    assert shares["own"] > 0.9 > 0.5 > shares["foreign"]
    assert known["by_source"]["own"]["logprob"] > known["by_source"]["foreign"]["logprob"]
    assert known["rows_judged"] == known["rows"]
    page = (tmp_path / "runs" / "train" / "report.html").read_text()
    assert "reply tokens are its best" in page
    alone = run_cli("view", "--worst", "2", "--path", "mixed/train.jsonl", *data[2:4])
    assert (alone.code, alone.error == "not-measured" and "cache/processed_dataset" in alone.err) == (2, True)
    cached = run_cli("cache", *data)
    assert "the target's own: " in cached.out
    assert "  foreign: " in cached.out
    told = run_cli("cache", *data, "--json").json["on_policy"]["train"]
    assert told["by_source"] == known["by_source"]
    planned = run_cli("train", *data, *few, "--output-dir", "runs/other", "--dry-run")
    assert "the target's own: " in planned.out
    assert "replies that are not the target's own (foreign: " in planned.out + planned.err
    worst = run_cli("view", "--worst", "3", *data[:4], "--json").json["rows"]
    assert [row["id"][0] for row in worst] == ["f"] * 3
    assert [row["on_policy"]["share"] for row in worst] == sorted(row["on_policy"]["share"] for row in worst)
    assert "the target's best (mean log-probability" in run_cli("view", "--worst", "1", *data[:4]).out


@pytest.mark.slow
def test_capture_and_what_is_trained_from_disk_say_it_too(run_cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    mixture(run_cli, tiny, tmp_path)
    data = ("--train-data-path", "mixed/train.jsonl", "--target-model-path", tiny, "--draft-vocab-size", "200")
    captured = run_cli("hidden-states", *data)
    assert captured.code == 0, captured.err
    assert "train, the target's own: " in captured.err
    assert "replies that are not the target's own (foreign: " in captured.err
    told = run_cli("cache", *data, "--json").json["on_policy"]["train"]
    assert told["by_source"]["own"]["share"] > 0.9 > 0.5 > told["by_source"]["foreign"]["share"]
    file = next((tmp_path / "cache").glob(f"processed_dataset/*/train/{on_policy.FILE}"))
    ranked = [
        row["row"]
        for row in run_cli("view", "--worst", "4", "--path", "cache/hidden_states/train", "--json").json["rows"]
    ]
    file.unlink()  # as stores of earlier versions: they hold the target's best tokens
    again = run_cli("view", "--worst", "4", "--path", "cache/hidden_states/train", "--json").json["rows"]
    shares = [row["on_policy"]["share"] for row in again]
    assert shares == sorted(shares)
    assert {row["id"][0] for row in again} == {"f"}
    assert len(ranked) == 4
    few = ("--mode", "offline", "--num-epochs", "1", "--ttt-length", "2", "--target-model-path", tiny)
    trained = run_cli("train", *few, "--train-hidden-states-path", "cache/hidden_states/train")
    assert trained.code == 0, trained.err
    known = json.loads((tmp_path / "runs" / "train" / "run.json").read_text())["on_policy"]["train"]
    shares_now = {name: part["share"] for name, part in known["by_source"].items()}
    assert shares_now == {name: part["share"] for name, part in told["by_source"].items()}
    assert known["logprob"] is None
