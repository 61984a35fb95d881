"""A disk that fills up while a run saves: a limit on the size of files, put on its processes, stands in."""

from __future__ import annotations

import resource
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from eagle3cli.runtime.distributed import SINGLE_PROCESS
from eagle3cli.runtime.files import append
from eagle3cli.runtime.report import Silent
from eagle3cli.training.checkpoint import save as saver
from eagle3cli.training.checkpoint.load import latest_valid_checkpoint, list_checkpoints
from eagle3cli.training.history import history_writer, read_history
from tests.commands.train.ranks import CALM, events, ranks_of
from tests.commands.train.runs import start, wait_for
from tests.conftest import RunCli

FULL = 60_000
"""Bytes; a history outgrows them in a hundred steps, and every file of weights at once."""


def training(place: Path, *words: str) -> tuple[subprocess.Popen[str], list[int]]:
    """A run that has saved once, and the processes that write."""
    process = start(place, "--output-dir", "run", "--gpus", "2", "--num-epochs", "99999", *CALM, *words)
    wait_for(process, lambda: any((place / "run" / "checkpoints").glob("epoch_*")))
    return process, ranks_of(process.pid)


def limit(processes: list[int], size: int) -> None:
    for pid in processes:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


@contextmanager
def full_disk(size: int = FULL) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while_costs_nothing(place: Path) -> None:
    process, ranks = training(place, "--total-steps", "99999", "--eval-interval", "5")
    run = place / "run"
    said = run / "log.txt"
    limit(ranks, FULL)
    wait_for(process, lambda: said.read_text().count("was not written") > 3 and "its history waits" in said.read_text())
    steps = len(events(run))
    limit(ranks, resource.RLIM_INFINITY)
    wait_for(process, lambda: len(events(run)) > steps)
    before = {path.name for path in list_checkpoints(run)}
    wait_for(process, lambda: any(path.name not in before for path in list_checkpoints(run)))
    process.send_signal(signal.SIGTERM)
    told = process.communicate(timeout=300)[0]
    assert process.returncode == 128 + signal.SIGTERM, told
    assert "cannot write: File too large" in told
    assert latest_valid_checkpoint(run, Silent(), SINGLE_PROCESS) == list_checkpoints(run)[-1]
    assert not list((run / "checkpoints").glob(".*")), "nothing is left of what could not be written"
    logged = [event["step"] for event in events(run) if event["event"] == "step"]
    assert logged == list(range(1, len(logged) + 1))


@pytest.mark.slow
def test_a_disk_that_stays_full_ends_the_run_and_leaves_what_was_saved(place: Path) -> None:
    process, ranks = training(place, "--total-steps", "120", "--eval-interval", "1000")
    limit(ranks, FULL)
    assert_given_up(process.communicate(timeout=300)[0], place)
    assert process.returncode == 1


@pytest.mark.slow
def test_the_same_in_one_process(place: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("train", "--output-dir", "run", "--total-steps", "6")
    assert run_cli(*words).code == 0
    shutil.rmtree(list_checkpoints(place / "run")[-1])
    monkeypatch.setattr(saver, "PAUSE", 0.01)
    with full_disk():
        ran = run_cli(*words)
    assert ran.code == 1
    assert_given_up(ran.err, place)
    assert run_cli(*words).code == 0


def assert_given_up(said: str, place: Path) -> None:
    assert said.count("trying again in") == 2, said
    assert "make space (or choose another folder) and run the same command again" in said
    assert "Traceback" not in said
    assert latest_valid_checkpoint(place / "run", Silent(), SINGLE_PROCESS) is not None


def test_what_does_not_fit_leaves_no_half_a_line(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    path.write_text("a whole line\n")
    with full_disk(20), pytest.raises(OSError, match="too large"):
        append(path, "another whole line\n")
    assert path.read_text() == "a whole line\n"
    append(path, "another whole line\n")
    assert path.read_text() == "a whole line\nanother whole line\n"


def test_history_waits_for_space(tmp_path: Path) -> None:
    report = Silent()
    listen = history_writer(tmp_path, 0, report)
    shutil.move(tmp_path / "metrics.jsonl", tmp_path / "aside")
    (tmp_path / "metrics.jsonl").mkdir()  # nobody can write to that
    listen("step", {"step": 1})
    listen("step", {"step": 2})
    (tmp_path / "metrics.jsonl").rmdir()
    listen("step", {"step": 3})
    listen("step", {"step": 3})  # the same again is no news
    assert [row["step"] for row in read_history(tmp_path)] == [1, 2, 3]
    assert len(report.warnings) == 1
