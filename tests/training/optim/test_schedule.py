"""Learning rates and data order are pure functions of the step."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.training.batches import Sampler
from eagle3cli.training.optim.schedule import learning_rate


def test_equals_the_reference_schedules(shared: Path) -> None:
    path = shared / "fixtures" / "parity" / "lr_schedule.json"
    if not path.exists():
        pytest.skip(f"no reference schedules at {path}")
    cases = [case for case in json.loads(path.read_text()) if case["kind"] == "cosine"]
    assert cases
    for case in cases:
        peak, total, warmup = case["base_lr"], case["total_steps"], case["warmup_ratio"]
        for step, want in enumerate(case["textbook_lr_at_step"]):
            got = learning_rate(step, peak=peak, total=total, warmup_ratio=warmup)
            assert got == pytest.approx(want, rel=1e-6, abs=1e-12)


def test_shapes() -> None:
    def at(step: int, shape: str, floor: float = 0.0) -> float:
        return learning_rate(step, peak=1.0, total=100, warmup_ratio=0.1, shape=shape, floor_ratio=floor)  # type: ignore[arg-type]

    assert at(0, "cosine") == pytest.approx(0.1)
    assert at(9, "cosine") == pytest.approx(1.0)
    assert at(55, "cosine") == pytest.approx(0.5)
    assert at(1000, "cosine", 0.02) == pytest.approx(0.02)
    assert at(99, "constant") == 1.0
    assert at(79, "wsd") == 1.0
    assert at(90, "wsd") == pytest.approx(0.5)


@given(st.integers(1, 10**6), st.integers(0, 2 * 10**6), st.floats(0, 0.9))
def test_never_above_the_peak_nor_below_zero(total: int, step: int, warmup: float) -> None:
    rate = learning_rate(step, peak=1e-3, total=total, warmup_ratio=warmup)
    assert 0 <= rate <= 1e-3 * (1 + 1e-9)
    assert math.isfinite(rate)


@given(st.integers(1, 60), st.integers(1, 12), st.integers(0, 5))
def test_an_epoch_shows_every_row_once(rows: int, batch_size: int, seed: int) -> None:
    order = Sampler(rows, batch_size, seed)
    for epoch in range(2):
        steps = range(epoch * order.steps_per_epoch, (epoch + 1) * order.steps_per_epoch)
        assert sorted(row for step in steps for row in order.batch(step)) == list(range(rows))
        assert {order.epoch_of(step) for step in steps} == {epoch}
    assert Sampler(rows, batch_size, seed).batch(3) == order.batch(3)
