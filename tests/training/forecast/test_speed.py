"""What a plan says of a run's speed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from eagle3cli.backends.capture.memory import TargetShape
from eagle3cli.training.forecast.speed import ASSUMED_GPU, active_weights, product_flops
from tests.conftest import RunCli


def test_a_plan_foretells_the_time_of_a_step(place: Path, run_cli: RunCli) -> None:
    alone = run_cli("train", "--dry-run", "--json").json["speed"]
    assert alone["device"] == "this processor"
    assert alone["efficiency"] == pytest.approx(1)
    assert alone["seconds"] == pytest.approx(sum(alone["parts"].values()))
    assert alone["parts"]["communication"] == 0
    assert alone["parts"]["target"] > 0
    several = run_cli("train", "--dry-run", "--json", "--device", "cuda", "--draft-sharding", "fsdp").json["speed"]
    assert ASSUMED_GPU in several["device"] or torch.cuda.is_available()
    assert several["seconds"] < alone["seconds"]
    said = run_cli("train", "--dry-run").out
    assert "s a step" in said
    assert "tokens/s on this processor" in said
    assert "all steps" in said


def test_experts_that_a_token_does_not_pass_cost_no_time() -> None:
    target = TargetShape(10**9, layers=2, hidden=8, intermediate=16, key_value=4, vocab=100, tied=False)
    assert active_weights(target) == 2 * (8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16) + 800


def test_a_product_is_timed_with_the_threads_left_as_they_were() -> None:
    before = torch.get_num_threads()
    assert math.isfinite(product_flops(torch.float32))
    assert torch.get_num_threads() == before
