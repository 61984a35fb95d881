"""Where a step's time goes: parts that add up, on the processor and on a GPU."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from eagle3cli.runtime.stop import Stop
from eagle3cli.training.timers import PARTS, Timers, shares
from tests.training.test_trainer import make_trainer


def test_a_parts_time_is_counted_once() -> None:
    timers = Timers()
    for _ in range(2):
        with timers.part("forward"):
            time.sleep(0.02)
    *parts, processor = timers.read()
    found = dict(zip(PARTS, parts, strict=True))
    assert found["forward"] >= 0.04
    assert sum(parts) == found["forward"]
    assert 0 <= processor < found["forward"]  # sleeping takes none
    assert sum(timers.read()[:-1]) == 0.0


def test_a_part_inside_another_is_counted_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([1.0, 3.0, 10.0, 14.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(now))
    timers = Timers()
    with timers.part("optimiser"), timers.part("communication"):
        pass
    monkeypatch.undo()
    found = dict(zip(PARTS, timers.read(), strict=False))
    assert found == {**dict.fromkeys(PARTS, 0.0), "optimiser": 2.0 + 4.0, "communication": 7.0}


def test_shares_add_up_to_one() -> None:
    parts = [1.0, 0.0, 2.0, 0.5, 0.5, 0.0, 0.0]
    found = shares(parts, 8.0)
    assert found == {"target": 0.125, "forward": 0.25, "backward": 0.0625, "optimiser": 0.0625, "other": 0.5}
    assert sum(shares(parts, 2.0).values()) == pytest.approx(1.0)  # clocks differ by a little
    assert shares([0.0] * 7, 0.0) == {"other": 1.0}


def test_the_log_says_what_a_run_takes(tmp_path: Path) -> None:
    trainer, told = make_trainer(tmp_path, total_steps=6, batch_size=2, log_interval=2, eval_interval=3), []
    trainer.listeners = [lambda event, numbers: told.append((event, numbers))]
    trainer.train(Stop())
    steps: list[dict[str, Any]] = [numbers for event, numbers in told if event == "step"]
    assert [row["step"] for row in steps] == [2, 4, 6]
    assert sum(row["tokens"] for row in steps) == 2 * sum(trainer.batches.source.lengths)
    for row in steps:
        assert sum(row["time"].values()) == pytest.approx(1.0, abs=1e-3)
        assert {"target", "forward", "backward", "optimiser"} <= row["time"].keys()
        assert row["peak_memory"] > 50e6
        assert row["processor_seconds"] > 0
    seconds = [0.0, *(row["seconds"] for row in steps)]
    for row, before, after in zip(steps, seconds, seconds[1:], strict=False):
        assert row["tokens_per_s"] == pytest.approx(row["tokens"] / (after - before))  # evaluation is not training time
    assert [numbers["evaluation_seconds"] > 0 for event, numbers in told if event == "eval"] == [True, True]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_events_tell_what_kernels_took() -> None:
    timers = Timers(torch.device("cuda"))
    left = torch.randn(4096, 4096, device="cuda")
    with timers.part("forward"):
        for _ in range(50):
            left = left @ left
            left = left / left.norm()
    began = time.perf_counter()
    found = dict(zip(PARTS, timers.read(), strict=False))
    waited = time.perf_counter() - began
    assert found["forward"] >= 0.5 * waited
    assert timers.peak_memory() >= 2 * 4096 * 4096 * 4
