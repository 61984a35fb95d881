"""How the time of a refresh is dealt out: old rows as far as there is time, training for what is left."""

from __future__ import annotations

import time

import pytest

from eagle3cli.pipeline.refresh import budget
from eagle3cli.pipeline.refresh.budget import LEAST_TRAINING, READING, Budget


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    assert budget.time.monotonic() == 100.0
    return now


def test_old_rows_and_training_share_what_is_left(clock: list[float]) -> None:
    spent = Budget(600.0, began=clock[0])
    clock[0] += 100.0
    spent.told(50_000, 100.0)  # 2 ms a byte
    assert spent.left() == 500.0
    held_out = 10_000
    assert spent.measuring(held_out) == pytest.approx(60.0)
    rows = [b"x" * 500] * 1_000  # a second each
    count = spent.old_rows(rows, held_out)
    assert count == int(READING * 440)
    clock[0] += count
    assert spent.training(held_out) == pytest.approx(440 - count)
    assert spent.old_rows(rows[:10], held_out) == 10


def test_a_late_refresh_trains_for_a_while_all_the_same(clock: list[float]) -> None:
    late = Budget(600.0, began=clock[0])
    clock[0] += 700.0
    late.told(7_000, 700.0)
    assert late.training(1_000) == LEAST_TRAINING * 600
    assert late.old_rows([b"x" * 100] * 50, 1_000) == int(READING * LEAST_TRAINING * 60)


def test_without_a_limit_or_a_known_pace_all_old_rows_are_read(clock: list[float]) -> None:
    assert Budget(None).old_rows([b"x"] * 5, 1_000) == 5
    assert Budget(None).training(1_000) is None
    again = Budget(60.0, began=clock[0])  # what was judged is known from a killed refresh
    assert again.old_rows([b"x"] * 5, 1_000) == 5
    assert again.training(1_000) == 60.0
