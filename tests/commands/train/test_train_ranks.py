"""train --gpus: several processes give what one gives, and any that fails, hangs or is killed costs little."""

from __future__ import annotations

import os
import re
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eagle3cli.runs.folder import read_run
from tests.commands.train.ranks import CALM, assert_same_course, gone, ranks_of
from tests.commands.train.runs import result_of, start, wait_for
from tests.conftest import RunCli

LONG = ("--total-steps", "100000", "--num-epochs", "100000", "--eval-interval", "100000", "--save-interval", "20")


@pytest.mark.slow
def test_any_number_of_processes_gives_what_one_gives(place: Path, run_cli: RunCli) -> None:
    result_of(run_cli("train", "--output-dir", "one", *CALM, "--json"))
    for name, words in {
        "two": ("--gpus", "2", "--draft-micro-batch-size", "1"),
        "by tokens": ("--gpus", "3", "--draft-sharding", "fsdp", "--max-tokens-per-gpu", "40"),
    }.items():
        result = result_of(run_cli("train", "--output-dir", name, *words, *CALM, "--json", process=True))
        assert result["steps"] == 12
        assert_same_course(place / "one", place / name)
        alone, together = read_run(place / "one"), read_run(place / name)
        assert together.metadata["processes"] == int(words[1])
        assert together.total("tokens") == alone.total("tokens")
        assert all(sum(step["time"].values()) <= 1.001 for step in together.steps)
        assert "waiting for other processes" in (place / name / "report.html").read_text()


@pytest.mark.slow
def test_more_processes_than_rows(place: Path, run_cli: RunCli) -> None:
    """Two rows a step for three processes, one of which has nothing to do; offline."""
    assert run_cli("hidden-states").code == 0
    words = (
        "train",
        "--mode",
        "offline",
        "--batch-size",
        "2",
        "--total-steps",
        "4",
        *CALM,
        "--ema-decay",
        "0.5",
        "--json",
    )
    result_of(run_cli(*words, "--output-dir", "one"))
    for name, (sharding, count) in {"whole": ("replicate", 3), "shards": ("fsdp", 3)}.items():
        ran = run_cli(*words, "--output-dir", name, "--gpus", count, "--draft-sharding", sharding, process=True)
        result_of(ran)
        assert_same_course(place / "one", place / name)


@pytest.mark.slow
def test_a_rank_that_is_stopped_ends_the_run_in_time(place: Path) -> None:
    process = start(place, "--output-dir", "run", "--gpus", "2", "--dist-timeout", "0.1", *LONG)
    wait_for(process, lambda: any((place / "run" / "checkpoints").glob("epoch_*")))
    ranks = ranks_of(process.pid)
    os.kill(ranks[1], signal.SIGSTOP)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 1
    assert re.search(rf"process {ranks[1]}\) does not answer for \d+ s", said), said
    assert gone(ranks)


@pytest.mark.slow
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


@pytest.mark.slow
def test_sigterm_saves_on_all_ranks_and_the_same_command_goes_on(place: Path, run_cli: RunCli) -> None:
    process = start(place, "--output-dir", "run", "--gpus", "2", *LONG)
    wait_for(process, lambda: any((place / "run" / "checkpoints").glob("epoch_*")))
    ranks = ranks_of(process.pid)
    process.send_signal(signal.SIGTERM)
    said = process.communicate(timeout=300)[0]
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "saved step" in said
    assert gone(ranks)


@pytest.mark.slow
def test_a_damaged_checkpoint_of_several_ranks_is_passed_over(place: Path, run_cli: RunCli) -> None:
    words = ("train", "--output-dir", "run", "--gpus", "2", "--draft-sharding", "fsdp", *CALM, "--json")
    result_of(run_cli(*words, process=True))
    newest = place / "run" / "checkpoints" / "epoch_2_step_12" / "resume"
    shards = sorted(newest.glob("*.safetensors"))
    assert len(shards) == 2
    content = bytearray(shards[1].read_bytes())
    content[-3] ^= 64  # of a number: the file can still be read
    shards[1].write_bytes(content)
    ran = run_cli(*words, process=True)
    assert result_of(ran)["steps_this_time"] == 3
    assert "damaged or missing" in ran.err


@pytest.mark.slow
def test_tasks_of_slurm_join_without_torchrun(place: Path, run_cli: RunCli) -> None:
    """What ``srun --ntasks 2 eagle3 train`` sets, for two tasks on this machine."""
    short = (*CALM, "--total-steps", "4", "--eval-interval", "4")
    result_of(run_cli("train", "--output-dir", "one", *short, "--json"))
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "localhost"}
    with ThreadPoolExecutor(2) as pool:
        tasks = [
            pool.submit(
                run_cli,
                *("train", "--output-dir", "two", *short, "--json"),
                process=True,
                env={**job, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)},
            )
            for task in range(2)
        ]
    first, other = (task.result() for task in tasks)
    assert result_of(first)["steps"] == 4
    assert (other.code, other.out) == (0, ""), other.err
    assert_same_course(place / "one", place / "two")


@pytest.mark.parametrize("wrong", ["0", "some", "-1"])
def test_gpus_is_a_number_or_auto(run_cli: RunCli, place: Path, wrong: str) -> None:
    ran = run_cli("train", "--gpus", wrong)
    assert ran.code == 2
    assert "--gpus" in ran.err
    assert ran.error == "invalid-value"


@pytest.mark.slow
def test_all_gpus_of_a_machine_without_any_are_one_process(place: Path, run_cli: RunCli) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has GPUs")
    result_of(run_cli("train", "--gpus", "auto", "--output-dir", "run", "--total-steps", "2", "--json"))
    assert load_file(place / "run" / "best" / "model.safetensors")


@pytest.mark.slow
def test_a_target_over_two_processes_serves_two_groups(place: Path, run_cli: RunCli) -> None:
    """2 x 2: every process trains on rows of its own, and runs the target with its neighbour."""
    words = ("--batch-size", "5", "--draft-micro-batch-size", "1", "--total-steps", "4", "--eval-interval", "4", *CALM)
    result_of(run_cli("train", "--output-dir", "one", *words, "--json"))
    several = ("--output-dir", "four", "--gpus", "4", "--tp-size", "2", "--json")
    result_of(run_cli("train", *words, *several, process=True))
    assert_same_course(place / "one", place / "four")


@pytest.mark.slow
def test_processes_that_do_not_make_whole_groups(place: Path, run_cli: RunCli) -> None:
    ran = run_cli("train", "--tp-size", "2", "--gpus", "3", "--output-dir", "run", process=True)
    assert ran.code == 2
    assert "groups of 2" in ran.err
    assert "start a multiple of 2: --gpus 2" in ran.err
