"""train --gpus: several processes give what one gives, and any that fails, hangs or is killed costs little."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.commands.test_train import SETTINGS, conversations, last_state, start, trained, wait_for
from tests.conftest import RunCli

LONG = ("--total-steps", "100000", "--num-epochs", "100000", "--eval-interval", "100000", "--save-interval", "20")
CALM = ("--draft-init", "random", "--learning-rate", "1e-4", "--log-interval", "1")
"""Weights that rounding does not throw off their way."""


@pytest.fixture
def place(tmp_path: Path, tiny: Path) -> Path:
    (tmp_path / "train.jsonl").write_text(conversations(14, 0))
    (tmp_path / "eval.jsonl").write_text(conversations(4, 100))
    (tmp_path / "eagle3.toml").write_text(SETTINGS.format(tiny=tiny))
    return tmp_path


def events(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_course(one: Path, other: Path) -> None:
    """Losses, gradient norms and held-out acceptance to rounding."""
    for a, b in zip(events(one), events(other), strict=True):
        assert (a["event"], a["step"]) == (b["event"], b["step"])
        if a["event"] == "step":
            for name in ("loss", "grad_norm", "depth_losses", "accuracy"):
                assert a[name] == pytest.approx(b[name], rel=1e-5), (a["step"], name)
        else:
            assert a["acceptance_length"] == pytest.approx(b["acceptance_length"])
            assert a["by_reply_position"] == pytest.approx(b["by_reply_position"])


def ranks_of(pid: int) -> list[int]:
    """Processes that a launcher has started."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(p) for p in children if b"commands.worker" in Path(f"/proc/{p}/cmdline").read_bytes()]


def gone(processes: list[int]) -> bool:
    return not any(Path(f"/proc/{p}").exists() for p in processes)


def test_any_number_of_processes_gives_what_one_gives(place: Path, run_cli: RunCli) -> None:
    trained(run_cli("train", "--output-dir", "one", *CALM, "--json"))
    for name, words in {
        "two": ("--gpus", "2"),
        "three": ("--gpus", "3", "--draft-sharding", "fsdp", "--draft-micro-batch-size", "1"),
    }.items():
        result = trained(run_cli("train", "--output-dir", name, *words, *CALM, "--json", process=True))
        assert result["steps"] == 12
        assert_same_course(place / "one", place / name)


def test_more_processes_than_rows(place: Path, run_cli: RunCli) -> None:
    """Two rows a step for three processes, one of which has nothing to do; offline."""
    assert run_cli("hidden-states").code == 0
    words = ("train", "--mode", "offline", "--batch-size", "2", "--total-steps", "4", *CALM, "--json")
    trained(run_cli(*words, "--output-dir", "one"))
    for name, sharding in {"whole": "replicate", "shards": "fsdp"}.items():
        ran = run_cli(*words, "--output-dir", name, "--gpus", "3", "--draft-sharding", sharding, process=True)
        trained(ran)
        assert_same_course(place / "one", place / name)


def test_a_killed_rank_is_named_and_the_run_goes_on_with_any_number(place: Path, run_cli: RunCli) -> None:
    sharded = ("--draft-sharding", "fsdp", "--num-epochs", "100", "--save-interval", "5", *CALM)
    short = (*sharded, "--total-steps", "12", "--keep-checkpoints", "9", "--json")
    trained(run_cli("train", "--output-dir", "whole", "--gpus", "2", *short, process=True))
    process = start(place, "--output-dir", "killed", "--gpus", "2", *short, "--log-interval", "1")
    wait_for(process, (place / "killed" / "checkpoints" / "epoch_1_step_5").exists)
    ranks = ranks_of(process.pid)
    os.kill(ranks[-1], signal.SIGKILL)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 1, said
    assert f"rank {len(ranks) - 1} of 2 was ended by SIGKILL" in said
    assert gone(ranks)
    alone = run_cli("train", "--output-dir", "killed", *short)  # one process reads what two have written
    assert trained(alone)["steps"] == 12
    assert_same_course(place / "whole", place / "killed")


def test_killed_altogether_it_ends_with_the_same_bits(place: Path, run_cli: RunCli) -> None:
    words = ("--gpus", "2", "--save-interval", "4", *CALM)
    trained(run_cli("train", "--output-dir", "whole", *words, "--json", process=True))
    process = start(place, "--output-dir", "killed", *words)
    wait_for(process, (place / "killed" / "checkpoints" / "epoch_0_step_4").exists)
    ranks = ranks_of(process.pid)
    for pid in (process.pid, *ranks):
        os.kill(pid, signal.SIGKILL)
    process.wait()
    trained(run_cli("train", "--output-dir", "killed", *words, "--json", process=True))
    assert last_state(place / "killed") == last_state(place / "whole")


def test_a_rank_that_is_stopped_ends_the_run_in_time(place: Path) -> None:
    process = start(place, "--output-dir", "run", "--gpus", "2", "--dist-timeout", "0.1", *LONG)
    wait_for(process, lambda: any((place / "run" / "checkpoints").glob("epoch_*")))
    ranks = ranks_of(process.pid)
    os.kill(ranks[1], signal.SIGSTOP)
    began = time.monotonic()
    said = process.communicate(timeout=60)[0]
    assert time.monotonic() - began < 30
    assert process.returncode == 1
    assert f"process {ranks[1]}) does not answer for 6 s" in said, said
    assert gone(ranks)


def test_the_first_error_is_the_one_that_is_told(place: Path, run_cli: RunCli) -> None:
    """A row whose bytes were changed: the rank that reads it says so, and the others end with it."""
    assert run_cli("hidden-states").code == 0
    shard = max((place / "cache" / "hidden_states" / "train").glob("shard_*.safetensors"))
    content = bytearray(shard.read_bytes())
    content[-200] ^= 1
    shard.write_bytes(content)
    ran = run_cli("train", "--mode", "offline", "--gpus", "2", "--output-dir", "run", *CALM, process=True)
    assert ran.code == 1
    assert "of 2: " in ran.err
    assert "checksum" in ran.err
    assert "Traceback" not in ran.err


def test_sigterm_saves_on_all_ranks_and_the_same_command_goes_on(place: Path, run_cli: RunCli) -> None:
    process = start(place, "--output-dir", "run", "--gpus", "2", *LONG)
    wait_for(process, lambda: any((place / "run" / "checkpoints").glob("epoch_*")))
    ranks = ranks_of(process.pid)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=60)[0]
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "saved step" in said
    assert gone(ranks)


def test_a_damaged_checkpoint_of_several_ranks_is_passed_over(place: Path, run_cli: RunCli) -> None:
    words = ("train", "--output-dir", "run", "--gpus", "2", "--draft-sharding", "fsdp", *CALM, "--json")
    trained(run_cli(*words, process=True))
    newest = place / "run" / "checkpoints" / "epoch_2_step_12" / "resume"
    shards = sorted(newest.glob("*.safetensors"))
    assert len(shards) == 2
    content = bytearray(shards[1].read_bytes())
    content[-3] ^= 64  # of a number: the file can still be read
    shards[1].write_bytes(content)
    ran = run_cli(*words, process=True)
    assert trained(ran)["steps_this_time"] == 3
    assert "damaged or missing" in ran.err


@pytest.mark.parametrize("wrong", ["0", "some", "-1"])
def test_gpus_is_a_number_or_auto(run_cli: RunCli, place: Path, wrong: str) -> None:
    ran = run_cli("train", "--gpus", wrong)
    assert ran.code == 2
    assert "--gpus" in ran.err
    assert "neither a number of GPUs nor auto" in ran.err


def test_all_gpus_of_a_machine_without_any_are_one_process(place: Path, run_cli: RunCli) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has GPUs")
    trained(run_cli("train", "--gpus", "auto", "--output-dir", "run", "--total-steps", "2", "--json"))
    assert load_file(place / "run" / "best" / "model.safetensors")


def test_a_target_over_two_processes_serves_two_groups(place: Path, run_cli: RunCli) -> None:
    """2 x 2: every process trains on rows of its own, and runs the target with its neighbour."""
    words = ("--batch-size", "5", "--draft-micro-batch-size", "1", "--total-steps", "4", "--eval-interval", "4", *CALM)
    trained(run_cli("train", "--output-dir", "one", *words, "--json"))
    for name, processes in {"two": "2", "four": "4"}.items():
        several = ("--output-dir", name, "--gpus", processes, "--tp-size", "2", "--json")
        trained(run_cli("train", *words, *several, process=True))
        assert_same_course(place / "one", place / name)


def test_processes_that_do_not_make_whole_groups(place: Path, run_cli: RunCli) -> None:
    for processes in (("--gpus", "3"), ()):
        ran = run_cli("train", "--tp-size", "2", *processes, "--output-dir", "run", process=True)
        assert ran.code == 2
        assert "groups of 2" in ran.err
        assert "start a multiple of 2: --gpus 2" in ran.err
