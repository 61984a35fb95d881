"""Configurations, baselines, comparison token by token, and going on after an interruption."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from eagle3cli.backends.target.hf import read_target_config
from eagle3cli.errors import Stopped
from eagle3cli.models.checkpoint import save_draft
from eagle3cli.models.config import DraftConfig
from eagle3cli.models.draft import Draft
from eagle3cli.runtime.report import Silent
from eagle3cli.serving.bench import local as module
from eagle3cli.serving.bench.accuracy import last_number
from eagle3cli.serving.bench.bench import BenchResult, bench
from eagle3cli.serving.decode.decode import _Batch
from eagle3cli.settings.models import TargetSettings
from eagle3cli.settings.tables import Settings
from tests.failing import fails


@pytest.fixture(scope="module")
def draft(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random draft for the tiny target."""
    folder = tmp_path_factory.mktemp("draft") / "draft"
    config = DraftConfig.from_target(read_target_config(TargetSettings(model_path=str(tiny))), draft_vocab_size=64)
    torch.manual_seed(0)
    model = Draft(config)
    model.set_vocab(torch.zeros(64, dtype=torch.long), torch.arange(config.vocab_size) < 64)
    save_draft(folder, model.serving_state(), config, dtype=torch.float32)
    return folder


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [{"id": f"q{i}", "turns": [f"Question {i}? " * (i + 1), "And then?"]} for i in range(5)]
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(tiny: Path, draft: Path | None, questions: Path, *configs: str, **options: Any) -> BenchResult:
    return bench(settings_of(tiny, draft, questions, *configs, **options), Silent())


def settings_of(tiny: Path, draft: Path | None, questions: Path, *configs: str, **options: Any) -> Settings:
    table = {
        "engine": "local",
        "config_list": configs or ("2,0,0,0", "2,3,1,4"),
        "benchmark_list": (str(questions),),
        "max_tokens": 10,
        "output": questions.parent / "results.jsonl",
    }
    tables = {"target": {"model_path": str(tiny), "device": "cpu"}, "bench": table | options}
    return Settings.model_validate({**tables, "draft": {"path": str(draft) if draft else None}})


@pytest.mark.slow
def test_answers_are_the_baselines_and_counts_add_up(tiny: Path, draft: Path, questions: Path) -> None:
    done = run(tiny, draft, questions)
    plain, chain = done.table
    assert (plain["steps"], plain["requests"], "speedup" in plain) == (0, 5, False)
    assert chain["speedup"] == pytest.approx(chain["tokens_per_s"] / plain["tokens_per_s"], abs=0.001)
    assert chain["identical"] == chain["requests"] == 5
    assert chain["tokens"] == plain["tokens"]
    assert 1.0 <= chain["acceptance_length"] <= 4.0
    assert chain["acceptance_length"] == pytest.approx(1 + sum(chain["accepted_per_position"]), abs=0.001)
    assert chain["counters_fit"] is True
    assert chain["tokens_per_pass"] <= chain["acceptance_length"]
    rows = [json.loads(line) for line in done.output.read_text().splitlines()]
    assert [row["kind"] for row in rows] == [
        "settings",
        *["request"] * 5,
        "configuration",
        *["request"] * 5,
        "configuration",
    ]
    assert sorted(row["id"] for row in rows[1:6]) == [f"q{i}" for i in range(5)]


@pytest.mark.slow
def test_batches_and_turns_do_not_change_the_answers(tiny: Path, draft: Path, questions: Path) -> None:
    done = run(tiny, draft, questions, "1,2,1,3", "4,2,1,3", multi_turn=True)
    answers: dict[str, dict[Any, Any]] = {}
    for line in done.output.read_text().splitlines()[1:]:
        row = json.loads(line)
        if row["kind"] == "request":
            answers.setdefault(row["config"], {})[row["id"], row["turn"]] = row["token_ids"]
    assert len(answers) == 4  # configurations, of two batches each with its baseline
    assert all(ids == answers["1,0,0,0"] for ids in answers.values())
    assert len(answers["1,0,0,0"]) == 10


@pytest.mark.slow
def test_finished_configurations_are_not_measured_again(
    tiny: Path, draft: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = module.decode, []
    stop = [True]

    def stop_at_the_third(*args: Any, **kwargs: Any) -> Any:
        calls.append(kwargs["k"])
        if stop[0] and calls.count(2) == 3:  # the warm-up, the first batch, and then
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    run(tiny, draft, questions, "1,1,1,2")
    before = questions.with_name("results.jsonl").read_text()
    monkeypatch.setattr(module, "decode", stop_at_the_third)
    with pytest.raises(KeyboardInterrupt):
        run(tiny, draft, questions, "1,1,1,2", "2,1,1,2", "2,2,1,3")
    assert calls == [0, 0, 1, 1, 2, 2, 2]  # in turns, each behind its warm-up; the second round goes the other way
    assert questions.with_name("results.rounds.jsonl").is_file()
    stop[0] = False
    calls.clear()
    done = run(tiny, draft, questions, "1,1,1,2", "2,1,1,2", "2,2,1,3")
    assert done.measured == 3
    assert done.output.read_text().startswith(before)
    assert calls == [2, 2, 1, 1, 0, 0, 0, 1, 2]  # two of three rounds: the first was kept
    assert not questions.with_name("results.rounds.jsonl").exists()
    plain, chain = (row for row in done.table if row["config"] in ("2,0,0,0", "2,2,1,3"))
    assert (plain["rounds"], chain["rounds"]) == (3, 3)
    assert chain["speedup_rounds"]["min"] <= chain["speedup_rounds"]["median"] <= chain["speedup_rounds"]["max"]
    assert chain["speedup_cpu"] > 0
    assert plain["cpu_seconds"] > 0
    calls.clear()
    assert run(tiny, draft, questions, "2,1,1,2", "2,2,1,3").measured == 0
    assert run(tiny, draft, questions, "2,1,1,2", "2,2,1,3", "2,3,1,4").measured == 1


def test_a_stop_signal_acts_between_two_steps(
    tiny: Path, draft: Path, questions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, steps = _Batch.step, []

    def interrupted(batch: _Batch) -> Any:
        steps.append(len(batch.sequences))
        if len(steps) == 3:
            signal.raise_signal(signal.SIGINT)
        return real(batch)

    monkeypatch.setattr(_Batch, "step", interrupted)
    with pytest.raises(Stopped):
        run(tiny, draft, questions, "4,0,0,0", max_tokens=100, warm_up=0)
    assert len(steps) == 3


@pytest.mark.slow
def test_baselines_that_are_missing_come_first(tiny: Path, draft: Path, questions: Path) -> None:
    """A run that was stopped between two baselines has something to compare every draft with all the same."""
    run(tiny, draft, questions, "2,0,0,0")
    table = run(tiny, draft, questions, "2,2,1,3", "1,2,1,3", temperature=(0.0, 0.8)).table
    assert len(table) == 8
    assert all(("speedup" in row) == (row["steps"] > 0) for row in table)
    assert [row["identical"] for row in table if row["steps"] and not row["temperature"]] == [5, 5]


@pytest.mark.slow
def test_other_settings_are_refused(tiny: Path, draft: Path, questions: Path) -> None:
    run(tiny, draft, questions, "1,0,0,0")
    with fails("made-differently", "max_tokens", "10", "5"):
        run(tiny, draft, questions, "1,0,0,0", max_tokens=5)
    assert run(tiny, draft, questions, "1,0,0,0", max_tokens=5, overwrite=True).measured == 1


@pytest.mark.slow
def test_missing_drafts_and_long_prompts_are_told(tiny: Path, questions: Path, tmp_path: Path) -> None:
    assert run(tiny, None, questions, "1,0,0,0").measured == 1
    with fails("missing-draft"):
        run(tiny, None, questions, output=tmp_path / "none.jsonl")
    with fails("draft-format"):
        run(tiny, tmp_path / "absent", questions)
    with fails("context-too-short", "512"):
        run(tiny, None, questions, "1,0,0,0", max_tokens=500, output=tmp_path / "other.jsonl")


@pytest.mark.slow
def test_questions_without_room_for_an_answer_are_left_out_and_told(tiny: Path, questions: Path) -> None:
    with questions.open("a") as f:
        f.write(json.dumps({"id": "long", "turns": ["word " * 600]}) + "\n")
    report = Silent()
    result = bench(settings_of(tiny, None, questions, "1,0,0,0", "2,0,0,0"), report)
    assert [row["requests"] for row in result.table] == [5, 5]
    assert len(report.warnings) == 1
    assert "1 of 6 questions are left out" in report.warnings[0]


@pytest.mark.slow
def test_the_system_prompt_is_asked(tiny: Path, questions: Path, tmp_path: Path) -> None:
    run(tiny, None, questions, "1,0,0,0")
    run(tiny, None, questions, "1,0,0,0", system_prompt="Be brief.", output=tmp_path / "other.jsonl")
    first, other = (
        [json.loads(line)["token_ids"] for line in path.read_text().splitlines()[1:-1]]
        for path in (questions.with_name("results.jsonl"), tmp_path / "other.jsonl")
    )
    assert first != other


@pytest.mark.slow
def test_temperatures_and_repeats_are_rows_of_their_own(tiny: Path, draft: Path, questions: Path) -> None:
    done = run(tiny, draft, questions, "2,3,1,4", temperature=(0.0, 0.8), repeats=2)
    assert [(row["config"], row["temperature"]) for row in done.table] == [
        ("2,0,0,0", 0.0), ("2,3,1,4", 0.0), ("2,0,0,0", 0.8), ("2,3,1,4", 0.8)
    ]  # fmt: skip
    greedy, sampled = done.table[1], done.table[3]
    assert (greedy["requests"], greedy["compared"], greedy["identical"]) == (10, 10, 10)
    assert "identical" not in sampled
    assert sampled["tokens_per_s_spread"] is not None
    rows = [json.loads(line) for line in done.output.read_text().splitlines()[1:]]
    mine = [r for r in rows if (r["kind"], r["temperature"], r["config"]) == ("request", 0.8, "2,3,1,4")]
    drawn = [[row["token_ids"] for row in mine if row["repeat"] == repeat] for repeat in (0, 1)]
    assert drawn[0] != drawn[1]  # each repeat draws anew


@pytest.mark.slow
def test_a_task_without_its_data_is_left_out_and_told(tiny: Path, questions: Path) -> None:
    report = Silent()
    settings = settings_of(tiny, None, questions, "1,0,0,0", benchmark_list=(str(questions), "gsm8k:4"))
    done = bench(settings, report)
    assert [row["task"] for row in done.table] == ["questions:5"]
    assert list(done.failed) == ["gsm8k:4"]
    assert "gsm8k@FILE.jsonl:ROWS" in report.warnings[0]


@pytest.mark.slow
def test_accuracy_is_told_with_and_without_the_draft(tiny: Path, draft: Path, tmp_path: Path) -> None:
    plain = run(tiny, None, ask(tmp_path, "0"), "1,0,0,0")
    replies = [json.loads(line)["answer"] for line in plain.output.read_text().splitlines()[1:-1]]
    numbers = last_number(replies[0])
    path = ask(tmp_path, numbers or "7")
    done = run(tiny, draft, path, "1,2,1,3", output=tmp_path / "other.jsonl", benchmark_list=(f"gsm8k@{path}",))
    baseline, chain = done.table
    assert baseline["judged"] == 1
    assert baseline["accuracy"] == (1.0 if numbers else 0.0)
    assert (chain["accuracy"], chain["accuracy_baseline"]) == (baseline["accuracy"], baseline["accuracy"])


def ask(folder: Path, answer: str) -> Path:
    path = folder / "one.jsonl"
    path.write_text(json.dumps({"question": "Question 1? How many?", "answer": f"so #### {answer}"}) + "\n")
    return path
