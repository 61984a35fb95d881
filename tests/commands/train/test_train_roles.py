"""train --target-gpus: the target on ranks of its own gives what training beside it gives."""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.commands.train.ranks import CALM, assert_same_course, events, gone, ranks_of
from tests.commands.train.runs import result_of, start, wait_for
from tests.conftest import RunCli

ENDLESS = (*CALM, "--total-steps", "100000", "--num-epochs", "100000", "--eval-interval", "100000")
STEPS = ("--total-steps", "30", "--eval-interval", "15", "--save-interval", "15")


def losses(run: Path) -> list[float]:
    """Of every step, as they were written."""
    return [event["loss"] for event in events(run) if event["event"] == "step"]


@pytest.mark.slow
@pytest.mark.parametrize("echoes", [(), ("--echo-factor", "2", "--echo-buffer", "3")])
def test_one_rank_of_each_role_gives_what_one_process_gives(
    place: Path, run_cli: RunCli, echoes: tuple[str, ...]
) -> None:
    """To the bit, initial weights and held-out acceptance included."""
    words = ("train", *STEPS, *echoes, "--log-interval", "1", "--json")
    result_of(run_cli(*words, "--output-dir", "one"))
    result = result_of(run_cli(*words, "--output-dir", "split", "--gpus", 2, "--target-gpus", 1, process=True))
    assert result["steps"] == 30
    assert losses(place / "one") == losses(place / "split")
    assert_same_course(place / "one", place / "split")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("drafts", "split"),
    [
        (1, ("--gpus", 3, "--target-gpus", 2, "--tp-size", 2)),
        (2, ("--gpus", 3, "--target-gpus", 1)),
        (2, ("--gpus", 4, "--target-gpus", 2, "--draft-sharding", "fsdp", "--draft-micro-batch-size", 1)),
    ],
)
def test_any_split_gives_what_the_draft_ranks_give_beside_the_target(
    place: Path, run_cli: RunCli, drafts: int, split: tuple[object, ...]
) -> None:
    words = ("train", *STEPS, *CALM, "--json")
    result_of(run_cli(*words, "--output-dir", "beside", "--gpus", drafts, process=True))
    result_of(run_cli(*words, *split, "--output-dir", "apart", process=True))
    assert losses(place / "beside") == pytest.approx(losses(place / "apart"), rel=1e-6)
    assert_same_course(place / "beside", place / "apart")


@pytest.mark.slow
def test_a_rank_of_either_role_that_is_stopped_is_named_in_time(place: Path) -> None:
    for rank, role in ((0, "target"), (1, "draft")):
        words = ("--gpus", "2", "--target-gpus", "1", "--dist-timeout", "0.1", "--save-interval", "5", *ENDLESS)
        process = start(place, "--output-dir", role, *words)
        wait_for(process, lambda role=role: any((place / role / "checkpoints").glob("epoch_*")))  # type: ignore[misc]
        ranks = ranks_of(process.pid)
        os.kill(ranks[rank], signal.SIGSTOP)
        said = process.communicate(timeout=120)[0]
        assert process.returncode == 1
        assert f"rank {rank} ({role}, " in said
        assert f"process {ranks[rank]}) does not answer for" in said
        assert gone(ranks)


@pytest.mark.slow
def test_roles_need_no_launcher_of_ours(place: Path, run_cli: RunCli) -> None:
    """Tasks of SLURM; that of the target ends well, and says nothing."""
    words = ("train", *STEPS, *CALM, "--json")
    result_of(run_cli(*words, "--output-dir", "one"))
    job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_ID": "1", "SLURM_STEP_NODELIST": "localhost"}
    with ThreadPoolExecutor(2) as pool:
        tasks = [
            pool.submit(
                run_cli,
                *(*words, "--output-dir", "split", "--target-gpus", 1),
                process=True,
                env={**job, "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)},
            )
            for task in range(2)
        ]
    target, draft = (task.result() for task in tasks)
    assert (target.code, target.out) == (0, ""), target.err
    assert result_of(draft)["steps"] == 30
    assert losses(place / "one") == losses(place / "split")


@pytest.mark.slow
def test_a_signal_at_the_target_saves_and_the_run_goes_on_without_roles(place: Path, run_cli: RunCli) -> None:
    process = start(place, "--output-dir", "run", "--gpus", "2", "--target-gpus", "1", "--save-interval", "5", *ENDLESS)
    wait_for(process, lambda: any((place / "run" / "checkpoints").glob("epoch_*")))
    ranks = ranks_of(process.pid)
    os.kill(ranks[0], signal.SIGTERM)
    said = process.communicate(timeout=120)[0]
    assert process.returncode == 128 + signal.SIGTERM, said
    assert "saved step" in said
    assert "process for the target" in (place / "run" / "report.html").read_text()
    assert gone(ranks)
    steps = len(losses(place / "run")) + 4
    ran = run_cli("train", "--output-dir", "run", *CALM, "--total-steps", steps, "--num-epochs", 100_000, "--json")
    assert result_of(ran)["steps"] == steps


@pytest.mark.parametrize(
    ("words", "what", "fix"),
    [
        (("--target-gpus", 1), "needs at least 2 processes", "--gpus 2"),
        (("--target-gpus", 2, "--gpus", 2), "none is left to train the draft", "use --target-gpus 1, or start more"),
        (("--target-gpus", 3, "--gpus", 2), "none is left to train the draft", "use --target-gpus 1, or start more"),
        (("--target-gpus", 3, "--gpus", 4, "--tp-size", 2), "no multiple of --tp-size 2", "use --target-gpus 2"),
        (("--target-gpus", 1, "--gpus", 2, "--mode", "offline"), "runs no target", "--mode online"),
        (("--target-gpus", 1, "--gpus", 2, "--device-map", "auto"), "GPUs of the other processes", "--tp-size"),
        (("--transfer-encoding", "int8"), "to and from GPUs for the target", "add --target-gpus N"),
        (("--target-gpus", 0, "--gpus", 2), "at least 1", ""),
        (("--target-gpus", 1, "--gpus", 2, "--transfer-encoding", "int3"), "int8", ""),
    ],
)
def test_splits_that_cannot_be(place: Path, run_cli: RunCli, words: tuple[object, ...], what: str, fix: str) -> None:
    ran = run_cli("train", *words)
    assert ran.code == 2
    assert str(words[0]) in ran.err or str(words[-2]) in ran.err
    assert what in ran.err
    assert fix in ran.err
