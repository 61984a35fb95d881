"""Acceptance at a temperature, as typed: told by eval, and what ``best/`` goes by in training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import RunCli


@pytest.mark.slow
def test_best_goes_by_the_temperature_and_eval_tells_it(run_cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    rows = [
        {"id": f"r{i}", "conversations": [
            {"role": "user", "content": f"Hi {i}."}, {"role": "assistant", "content": "Hello, and how are you?"},
        ]}
        for i in range(6)
    ]  # fmt: skip
    for name, part in (("train", rows[:4]), ("eval", rows[4:])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    data = ("--train-data-path", "train.jsonl", "--eval-data-path", "eval.jsonl", "--target-model-path", tiny)
    words = ("train", *data, "--ttt-length", "2", "--draft-vocab-size", "200", "--set", "train.eval_interval=1")
    greedy = run_cli(*words, "--total-steps", "1")
    assert greedy.code == 0, greedy.err
    went_on = run_cli(*words, "--total-steps", "2", "--best-by", "0.1", "--top-k", "50", "--json")
    assert went_on.code == 0, went_on.err
    assert "train.best_by: another than before, so the best draft is looked for anew" in went_on.err
    assert "were not drawn at temperature 0.1" in went_on.err  # a random target would not write these
    events = [json.loads(line) for line in (tmp_path / "runs" / "train" / "metrics.jsonl").read_text().splitlines()]
    last = [event for event in events if event["event"] == "eval"][-1]
    assert last["temperature"] == 0.1
    assert went_on.json["best_acceptance_length"] == round(last["sampled_acceptance_length"][-1], 4)
    assert "temperature 0.1" in (tmp_path / "runs" / "train" / "report.html").read_text()

    of_draft = ("eval", *data[2:], "--draft-model-path", "runs/train/best", "--depths", "5")
    told = run_cli(*of_draft, "--temperature", "0", "0.1", "1.5", "--top-k", "50", "--json")
    assert told.code == 0, told.err
    sampled = told.json["sampled"]
    assert [each["temperature"] for each in sampled] == [0.1, 1.5]
    assert list(sampled[0]["acceptance_length"].values()) == [
        round(length, 4) for length in last["sampled_acceptance_length"]
    ]
    assert not sampled[0]["drawn_at_it"]
    assert (
        "Expected acceptance, temperature 1.5, top-k 50"
        in run_cli(*of_draft, "--temperature", "1.5", "--top-k", "50").out
    )
    assert "sampled" not in run_cli(*of_draft, "--json").json
    assert run_cli(*of_draft, "--temperature", "-1").code == 2
