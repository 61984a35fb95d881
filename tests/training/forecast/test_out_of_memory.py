"""Memory that runs out: where it was, what was forecast and what to change, in one process and in several."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from eagle3cli.backends.target import hf
from eagle3cli.runtime.out_of_memory import is_out_of_memory
from eagle3cli.training.trainer import Trainer
from tests.conftest import ROOT, RunCli

GPU = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.00 GiB"
CPU = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8"
)


def failing(error: Exception, after: int) -> Any:
    """A function that does its work some times and then has no memory."""
    calls = []

    def wrap(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            if len(calls) > after:
                raise error
            return function(*args, **kwargs)

        return call

    return wrap


def test_errors_of_memory_are_known_by_type_or_words() -> None:
    assert all(map(is_out_of_memory, (MemoryError(), torch.cuda.OutOfMemoryError(GPU), RuntimeError(CPU))))
    assert not is_out_of_memory(RuntimeError("shapes do not fit"))
    assert not is_out_of_memory(ValueError("can't allocate memory"))


@pytest.mark.slow
@pytest.mark.parametrize("error", [torch.cuda.OutOfMemoryError(GPU), RuntimeError(CPU), MemoryError()])
def test_a_step_names_itself_the_forecast_and_the_first_change(
    place: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "accumulate", failing(error, 4)(Trainer.accumulate))
        done = run_cli("train")
    assert done.code == 1
    assert "step 5: memory did not suffice" in done.err
    assert ("2.00 GiB more were asked for" in done.err) == (str(error) == GPU)
    assert "forecast for each process on cpu" in done.err
    assert " process\n" in done.err
    assert "fix: use --draft-micro-batch-size 2, then" in done.err
    changed = done.err.split("fix: use ")[1].split(", then")[0].split()
    again = run_cli("train", *changed, "--json")  # what it says can be done, and the run goes on
    assert again.code == 0, again.err
    assert (again.json["steps"], again.json["steps_this_time"]) == (12, 9)


@pytest.mark.slow
def test_a_capture_names_its_batch_and_a_smaller_one(
    place: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_cli("cache").code == 0
    capture = hf.HfTarget.capture

    def wide(self: Any, sequences: Any) -> Any:
        if len(sequences) > 4:
            raise torch.cuda.OutOfMemoryError(GPU)
        return capture(self, sequences)

    monkeypatch.setattr(hf.HfTarget, "capture", wide)
    done = run_cli("hidden-states")
    assert done.code == 1
    assert "14 rows of up to" in done.err
    assert "of target weights" in done.err
    assert "fix: use --batch-tokens " in done.err
    tokens = int(done.err.split("--batch-tokens ")[1].split()[0])
    assert run_cli("hidden-states", "--batch-tokens", tokens // 2).code == 0


@pytest.mark.slow
def test_an_evaluation_names_its_forecast_and_a_change(
    place: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    from eagle3cli.training.eval import evaluate

    assert run_cli("train", "--total-steps", 1).code == 0
    monkeypatch.setattr(evaluate, "proposals", failing(MemoryError(), 0)(evaluate.proposals))
    done = run_cli("eval", "--draft-model-path", "runs/train/best")
    assert done.code == 1
    assert done.error == "out-of-memory"
    assert "8" in done.err


LIMITED = """
import resource, sys
from eagle3cli.training.trainer import Trainer
inner, calls = Trainer.accumulate, []

def accumulate(*given):
    calls.append(1)
    if len(calls) == 2:  # what one step has needed is kept for the next: leave nothing on top, and ask for more
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size, size))
        import torch
        torch.empty(3 * 10**9, dtype=torch.uint8)
    return inner(*given)

Trainer.accumulate = accumulate
from eagle3cli.cli.main import main
sys.exit(main())
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits as Linux has them")
def test_a_process_at_its_limit_of_memory_says_so(place: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, "train"],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert done.returncode == 1, done.stderr
    assert "step 2: memory did not suffice" in done.stderr
    assert "--draft-micro-batch-size" in done.stderr or "forecast for each process" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_of_several_processes_the_one_without_memory_is_told(
    place: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each rank is a new process: it finds this module before the work begins.
    (place / "sitecustomize.py").write_text(
        "import os, sys\n"
        "if os.environ.get('RANK') == '1':\n"
        "    sys.path.insert(0, os.environ['EAGLE3_ROOT'])\n"
        "    from eagle3cli.training.trainer import Trainer\n"
        "    inner, calls = Trainer.accumulate, []\n"
        "    def accumulate(*given):\n"
        "        calls.append(1)\n"
        "        if len(calls) > 2:\n"
        "            raise MemoryError\n"
        "        return inner(*given)\n"
        "    Trainer.accumulate = accumulate\n"
    )
    done = run_cli(
        "train",
        "--gpus",
        2,
        process=True,
        env={"PYTHONPATH": f"{place}{os.pathsep}{ROOT}", "EAGLE3_ROOT": str(ROOT)},
    )
    assert done.code == 1
    assert "rank 1 of 2: memory did not suffice" in done.err
    assert "step 3" in done.err
    assert "forecast for each process on cpu" in done.err
    assert "fix: use --" in done.err
