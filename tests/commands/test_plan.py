"""plan and --dry-run of every long command: what is said is what then happens, and saying it changes nothing."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eagle3cli.cli import main as cli
from tests.cli.test_main import command
from tests.conftest import RunCli
from tests.tiny import conversations

LONG = ("prepare", "regenerate", "merge", "cache", "hidden-states", "train", "eval", "bench", "run")

Planned = Callable[..., Any]


@pytest.fixture
def planned(run_cli: RunCli, place: Path, monkeypatch: pytest.MonkeyPatch) -> Planned:
    """The plan of a command line: made without a network, and without any change below the folder."""

    def refuse(*_: object) -> None:
        raise AssertionError("a plan asks nobody")

    def run(*words: object, code: int = 0) -> Any:
        before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
        with monkeypatch.context() as patch:
            patch.setattr(socket.socket, "connect", refuse)
            done = run_cli(*words, "--json")
        assert done.code == code, done.err
        assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before
        return done.json

    return run


def test_every_long_command_has_a_plan() -> None:
    with_one = [line.name for line in cli.TABLE if line.name not in ("config", "plan") and command(line.name).plan]
    assert sorted(with_one) == sorted(LONG)
    assert sorted(action.name for action in command("plan").actions) == sorted(LONG)


def test_prepare_says_what_it_then_does(planned: Planned, run_cli: RunCli, place: Path) -> None:
    words = ("prepare", "train.jsonl", "--output-path", "prepared", "--sample-size", 9)
    plan = planned(*words, "--dry-run")
    assert (plan["rows"], plan["rows_at_most"], plan["already_done"]) == (14, 9, False)
    assert run_cli(*words).code == 0
    again = planned(*words, "--dry-run")
    assert (again["already_done"], again["train_rows"]) == (True, 9)
    assert planned(*words[:-1], 8, "--dry-run", code=2)["error"]["message"].startswith("already exists")


@pytest.mark.slow
def test_regenerate_counts_the_replies_that_are_left(planned: Planned, run_cli: RunCli, place: Path) -> None:
    words = ("regenerate", "--engine", "local", "--input-path", "train.jsonl", "--max-tokens", 4, "--num-per-shard", 5)
    plan = planned(*words, "--dry-run")
    assert (plan["rows_left"], plan["requests"], plan["shards"], plan["tokens_at_most"]) == (14, 14, 3, 56)
    assert run_cli(*words, "--sample-range", "0:5").code == 0
    part = planned(*words, "--sample-range", "0:5", "--dry-run")
    assert (part["rows"], part["rows_left"], part["requests"]) == (5, 0, 0)
    assert "other settings" in planned(*words, "--dry-run", code=2)["error"]["message"]


def test_merge_counts_the_rows_of_its_shards(planned: Planned, run_cli: RunCli, place: Path) -> None:
    shards = place / "shards"
    shards.mkdir()
    (shards / "shard_0-14.jsonl").write_text(conversations(14, 0))
    (shards / "error_0-14.jsonl").write_text('{"row": 1, "reason": "x"}\n')
    words = ("merge", "--input-dir", "shards", "--output-dir", "merged", "--eval-size", 3)
    plan = planned(*words, "--dry-run")
    assert (plan["rows"], plan["failed_rows"], plan["train_rows_at_most"], plan["eval_rows"]) == (14, 1, 11, 3)
    done = run_cli(*words, "--json").json
    assert (done["train_rows"], done["eval_rows"]) == (11, 3)
    assert planned(*words, "--dry-run")["already_done"] is True


@pytest.mark.slow
def test_training_from_the_tokens_to_the_last_step(planned: Planned, run_cli: RunCli, place: Path) -> None:
    assert planned("cache", "--dry-run")["rows"] == {"train": 14, "eval": 4}
    first = planned("train", "--dry-run")
    assert (first["rows"], first["rows_known"], first["steps"], first["processes"]) == (14, False, 12, 1)
    assert planned("hidden-states", "--dry-run")["rows_known"] is False

    assert run_cli("cache").code == 0
    cached = planned("cache", "--dry-run")
    assert cached["already_done"] is True
    second = planned("train", "--dry-run")
    assert second["rows_known"] is True
    assert second["tokens"] == cached["train"]["tokens"] < first["tokens"]
    assert second["loss_tokens"] == cached["train"]["loss_tokens"]
    assert second["steps_per_epoch"] == 4
    assert sum(second["memory"]["parts"].values()) == second["memory"]["peak_bytes"]
    echoed = planned("train", "--echo-factor", 3, "--echo-buffer", 2, "--dry-run")
    assert echoed["steps_per_epoch"] == 12
    assert echoed["memory"]["parts"]["states for echoes"] > 0
    assert second["proposals"] == []
    assert "--train-data-path train.jsonl" in second["launch"][0]

    states = planned("hidden-states", "--dry-run")["splits"]["train"]
    captured = run_cli("hidden-states", "--json").json["splits"]["train"]
    assert (states["rows"], states["tokens"], states["shards"]) == (14, captured["tokens"], captured["shards"])
    written = sum(path.stat().st_size for path in (place / "cache/hidden_states/train").glob("shard_*"))
    assert states["disk_bytes"] == pytest.approx(written, rel=0.05)
    assert planned("hidden-states", "--dry-run")["splits"]["train"]["passes"] == 0

    offline = planned("plan", "--mode", "offline", "--ttt-length", 2, "--overwrite")
    assert offline["tokens"] == second["tokens"]
    assert "target weights" not in offline["memory"]["parts"]
    assert run_cli("train", "--mode", "offline", "--total-steps", 2).code == 0
    assert planned("train", "--mode", "offline", "--dry-run")["done"] == [
        "epoch_0_step_2 is there: the run goes on from it"
    ]
    measured = planned("eval", "--draft-model-path", "runs/train/best", "--dry-run")
    assert (measured["rows"], measured["passes"]) == (4, 1)


@pytest.mark.slow
def test_plan_shows_the_same_as_dry_run(planned: Planned) -> None:
    assert (
        planned("plan", "train", "--batch-size", 2)["steps"]
        == planned("train", "--batch-size", 2, "--dry-run")["steps"]
    )
    assert planned("plan", "cache") == planned("cache", "--dry-run")
    assert planned("plan", "quickstart")["stages_left"][0] == "target"


def test_several_processes_get_their_share_and_the_line_to_launch_them(planned: Planned) -> None:
    plan = planned("train", "--gpus", 2, "--batch-size", 8, "--draft-sharding", "fsdp", "--dry-run")
    assert (plan["processes"], plan["sharded"]) == (2, True)
    assert plan["launch"][0].startswith("launch: eagle3 train --gpus 2 ")
    assert "torchrun --nproc-per-node 2 -m eagle3cli train" in plan["launch"][1]


def test_what_does_not_fit_gets_proposals_of_which_the_last_fits(
    planned: Planned, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eagle3cli.training.forecast import inputs as known

    words = ("train", "--batch-size", 8, "--draft-init", "random", "--max-length", 512, "--ttt-length", 7, "--dry-run")
    usual = planned(*words)["memory"]["peak_bytes"]
    monkeypatch.setattr(known, "memory_of", lambda device: usual)
    plan = planned(*words)
    assert [proposal["fits"] for proposal in plan["proposals"]][-1] is True
    assert not any(proposal["fits"] for proposal in plan["proposals"][:-1])
    named = plan["proposals"][-1]["flags"]
    assert plan["warnings"][0].endswith(f"use {named}")
    changed = planned(*words[:-1], *named.split(), "--dry-run")["memory"]["peak_bytes"]
    assert changed == pytest.approx(plan["proposals"][-1]["bytes"], rel=0.2)  # this process grows meanwhile
    assert changed < usual

    monkeypatch.setattr(known, "memory_of", lambda device: 10**6)
    assert "use more or larger devices" in planned(*words)["warnings"][0]


def test_bench_counts_what_is_not_measured_yet(planned: Planned, run_cli: RunCli, place: Path) -> None:
    words = ["bench", "--engine", "local", "--benchmark-list", "eval.jsonl:3", "--config-list", "1,0,0,0", "2,0,0,0"]
    words += ["--max-tokens", "3"]
    plan = planned(*words, "--dry-run")
    assert (plan["configurations"], plan["configurations_left"], plan["requests"]) == (2, 2, 6)
    done = run_cli(*words)
    assert done.code == 0, done.err
    assert planned(*words, "--dry-run")["configurations_left"] == 0


def test_a_plan_for_people_names_the_parts_of_the_memory(run_cli: RunCli, place: Path) -> None:
    told = run_cli("plan").out
    for word in ("reads", "steps", "memory of one process", "  process\n", "launch:", "writes"):
        assert word in told
    assert json.loads(run_cli("plan", "--json").out)["dry_run"] is True


def test_a_misspelt_name_after_plan_is_told(run_cli: RunCli, place: Path) -> None:
    told = run_cli("plan", "trian")
    assert told.code == 2
    assert "train" in told.err


@pytest.mark.slow
def test_a_plan_of_the_chain_says_what_is_wrong_with_the_target(planned: Planned, place: Path) -> None:
    (place / "cut.gguf").write_bytes(b"GGUF\x03")
    warnings = planned("plan", "quickstart", "--model-path", "cut.gguf")["warnings"]
    assert len(warnings) == 1
    assert "cut.gguf" in warnings[0]
    assert planned("plan", "quickstart")["warnings"] == []


def test_a_plan_foretells_a_target_with_processes_of_its_own(place: Path, run_cli: RunCli) -> None:
    """The draft's processes hold no target, the target's no draft, and the speed says which side would wait."""
    assert run_cli("cache").code == 0
    beside = run_cli("plan", "train", "--gpus", 2, "--json").json
    apart = run_cli("plan", "train", "--gpus", 3, "--target-gpus", 1, "--json").json
    assert (apart["processes"], apart["target_processes"]) == (2, 1)
    assert apart["memory"]["peak_bytes"] < beside["memory"]["peak_bytes"]
    assert "target weights" in apart["target_memory"]["parts"]
    split = apart["speed"]["split"]
    assert (split["target_ranks"], split["draft_ranks"]) == (1, 2)
    assert min(split["draft_waits"], split["target_waits"]) == 0
    assert "--gpus 3" in apart["launch"][0]
    assert "--target-gpus 1" in apart["launch"][0]
    assert "split" not in beside["speed"]
    wrong = run_cli("plan", "train", "--gpus", 2, "--target-gpus", 2)
    assert wrong.code == 2
    assert wrong.error == "process-count"
