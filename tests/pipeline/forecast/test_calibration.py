"""eagle3 plan --calibrate: what is timed is kept, decides the next plan, and is left alone where it is of something
else. How long anything takes is never asked here: the machine that tests run on is busy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eagle3cli.pipeline.forecast import calibrate
from eagle3cli.pipeline.forecast.calibration import Calibration, DecodingStep
from eagle3cli.pipeline.forecast.ranges import Range
from tests.conftest import Ran, RunCli
from tests.pipeline.test_run import RECIPE
from tests.tiny import tiny_target

Plan = Callable[..., Ran]
KNOWN = {"low": 0.01, "high": 0.011}
TIMED = ("regenerate", "train", "eval", "bench")


@pytest.fixture
def plan(run_cli: RunCli, tiny: Path, tmp_path: Path) -> Plan:
    """``eagle3 plan`` of a chain on a tiny target, with a cache folder of its own."""
    rows = [{"id": f"p{i}", "conversations": [{"role": "user", "content": f"{i}: How?"}]} for i in range(24)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tiny.toml").write_text(RECIPE.format(tiny=tiny, mode="offline"))
    place = {"XDG_CACHE_HOME": str(tmp_path / "home")}
    return lambda *words: run_cli("plan", "tiny.toml", *words, "--json", env=place)


@pytest.fixture
def kept(plan: Plan, tmp_path: Path) -> Path:
    """The file of a calibration, with times in it that are known."""
    assert plan("--calibrate").code == 0
    (path,) = (tmp_path / "home" / "eagle3" / "calibration").iterdir()
    content = json.loads(path.read_text())
    content |= {"waited": 0.0, "load_seconds": KNOWN, "capture_tokens_per_s": {"low": 1000, "high": 1001}}
    content["training_step_seconds"] |= KNOWN
    content["decoding_step_seconds"] = [step | KNOWN for step in content["decoding_step_seconds"]]
    path.write_text(json.dumps(content))
    return path


def minutes(ran: Ran, stage: str) -> tuple[float, float]:
    """The range of a stage's minutes."""
    told = ran.json["stages"][stage]["forecast"]["minutes"]
    return told["low"], told["high"]


def note(ran: Ran) -> str:
    """What is said of the calibration."""
    lines: list[str] = ran.json["forecast"]["ranges_from"]
    return next(line for line in lines if line.startswith("calibration: "))


@pytest.mark.slow
def test_it_is_kept_and_decides_the_next_plan(plan: Plan, kept: Path, tmp_path: Path) -> None:
    content = json.loads(kept.read_text())
    assert content["training_step_seconds"]["rows"] == 4
    assert {(step["batch"], step["depth"]) for step in content["decoding_step_seconds"]} == {
        *((1, 0), (4, 0), (1, 2), (4, 2))
    }
    after = plan()
    assert str(kept) in note(after)
    assert after.json["forecast"]["calibrated"] == content["made"]
    slower = {"low": 100_000, "high": 100_001}
    content["training_step_seconds"] |= slower
    content["decoding_step_seconds"] = [step | slower for step in content["decoding_step_seconds"]]
    kept.write_text(json.dumps(content))
    later = plan()
    for stage in TIMED:
        assert minutes(later, stage)[0] > minutes(after, stage)[1], stage
    tokens = after.json["stages"]["hidden-states"]["forecast"]["tokens"]
    assert minutes(after, "hidden-states")[0] * 60 >= tokens["low"] / 1001
    kept.unlink()
    before = plan()
    assert before.json["forecast"]["calibrated"] is None
    assert "--calibrate" in note(before)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_one_of_something_else_is_left_alone_and_told(plan: Plan, kept: Path, tmp_path: Path) -> None:
    asked = ("--set", "train.ttt_length=3")
    assert "train.ttt_length was 2, is 3" in note(plan(*asked))
    assert plan(*asked).json["forecast"]["calibrated"] is None
    other = tiny_target(tmp_path / "other", "qwen2")
    told = plan("--model-path", other)
    assert "none of this target; those here, of " in note(told)
    assert told.json["forecast"]["calibrated"] is None
    content = json.loads(kept.read_text())
    kept.unlink()
    content["machine"] |= {"torch": "2.0.0", "cores": 96}
    kept.with_name("elsewhere.json").write_text(json.dumps(content))
    stale = plan()
    assert "torch was 2.0.0, is " in note(stale)
    assert "cores was 96, is " in note(stale)
    assert stale.json["forecast"]["calibrated"] is None


@pytest.mark.slow
def test_a_file_that_is_none_is_told_and_made_anew(plan: Plan, kept: Path) -> None:
    content = json.loads(kept.read_text())
    kept.write_text(json.dumps(content | {"load_seconds": {"low": 3, "high": 2}}))
    told = plan()
    assert told.code == 0
    assert "3.0 to 2.0 is no range" in note(told)
    assert plan("--calibrate").json["forecast"]["calibrated"]


@pytest.mark.slow
def test_the_same_weights_under_another_name_are_as_fast(plan: Plan, kept: Path, tmp_path: Path) -> None:
    again = tiny_target(tmp_path / "again", seed=1)
    assert plan("--model-path", again).json["forecast"]["calibrated"]


def test_time_that_does_not_suffice_leaves_nothing(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "LIMIT", 1e-4)
    told = plan("--calibrate")
    assert told.code == 1
    assert told.error == "cannot-calibrate"
    assert not (tmp_path / "home").exists()


def test_what_cannot_be_timed_here_is_refused(plan: Plan, run_cli: RunCli, tmp_path: Path) -> None:
    told = run_cli("plan", "llama-3.1-8b-online", "--calibrate", "--set", "target.device=cuda")
    assert told.code == 2
    assert told.error == "cannot-calibrate"
    away = run_cli("plan", "llama-3.1-8b-online", "--calibrate", "--set", "target.device=cpu", "launch.gpus=1")
    assert away.code == 2
    assert away.error == "cannot-calibrate"
    run = run_cli("run", "tiny.toml", "--calibrate")
    assert run.code == 2
    assert "--dry-run" in run.err
    assert not (tmp_path / "runs").exists()


def test_steps_lie_on_lines_between_those_that_were_timed() -> None:
    steps: list[Any] = [(1, 0, 1.0), (5, 0, 3.0), (1, 4, 2.0), (5, 4, 8.0)]
    timed = Calibration("", decoding=tuple(DecodingStep(b, d, Range(s, 2 * s)) for b, d, s in steps))
    assert timed.decoding_seconds(3, 0) == Range(2.0, 4.0)
    assert timed.decoding_seconds(9, 0) == Range(5.0, 10.0)
    assert timed.decoding_seconds(5, 2) == Range(5.5, 11.0)
    assert Calibration("", decoding=timed.decoding[:2]).decoding_seconds(1, 2) is None
    assert Calibration("").decoding_seconds(1, 0) is None
