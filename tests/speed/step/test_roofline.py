"""The roofline counts what is known beforehand: products, bytes, memory that comes and goes, and a whole step."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.conftest import ROOT
from tests.pretend_gpu import pretend_gpu
from tests.speed.step.cost import CostMode, Costs, Machine
from tests.speed.step.roofline import count_step, peer_summary, shape
from tests.speed.step.step_case import Case, packaged

LLAMA = packaged("llama-3.1-8b")
SMALL = replace(LLAMA, hidden_size=512, target_hidden_size=512, head_dim=16, vocab_size=4000, draft_vocab_size=1000)


def test_a_product_takes_its_flop_and_memory_comes_and_goes() -> None:
    costs = Costs()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with pretend_gpu(), CostMode(costs, fake), costs.in_phase("product"):
        left = shape(fake, 4096, 4096)
        costs.track(left)
        for _ in range(3):
            left @ left
    cost = costs.total("product")
    assert cost.launches == 3
    assert cost.flop == 3 * 2 * 4096**3
    assert cost.seconds == cost.floor == pytest.approx(cost.flop / Machine().product_flops)
    assert costs.peak == 2 * 4096**2 * 2


def test_what_moves_bytes_takes_the_memorys_time_and_the_least_is_a_launch() -> None:
    costs = Costs()
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with pretend_gpu(), CostMode(costs, fake), costs.in_phase("sum"):
        large = shape(fake, 1 << 26)
        large + large
        large[:4].exp()
    assert costs.by_operator["sum", "add"].seconds == pytest.approx(3 * 2 * (1 << 26) / Machine().memory)
    assert costs.by_operator["sum", "exp"].seconds == Machine().launch


@pytest.mark.slow
def test_a_step_costs_more_for_more_and_recomputing_takes_less_memory() -> None:
    half, _ = count_step(Case(SMALL, (512, 512), 0.5))
    whole, _ = count_step(Case(SMALL, (512, 512), 1.0))
    again, _ = count_step(Case(SMALL, (512, 512), 1.0, recompute=True))
    assert half.total().flop < whole.total().flop < again.total().flop
    assert half.peak < whole.peak
    assert again.peak < whole.peak
    assert set(half.phases()) >= {"forward", "loss", "backward", "optimiser"}


def test_a_peer_that_is_not_here_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("EAGLE3_SPECFORGE", raising=False)
    assert "EAGLE3_SPECFORGE" in peer_summary(Case(SMALL, (64,)))["left_out"]


@pytest.mark.slow
def test_the_peer_takes_longer_where_half_of_the_positions_carry_loss() -> None:
    case = Case(SMALL, (512,), 0.5)
    found = peer_summary(case)
    if "left_out" in found:
        pytest.skip(found["left_out"])
    assert found["floor_ms"] > count_step(case)[0].total().floor * 1e3


@pytest.mark.slow
def test_the_command_prints_one_object() -> None:
    words = [sys.executable, "tests/speed/step/roofline.py", "--target", "qwen3-30b-a3b", "--lengths", "1024", "--json"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["step_ms"] > found["floor_ms"] > 0
    assert found["peak_gb"] > 0
    assert found["graphs"] <= torch._dynamo.config.recompile_limit
    assert {"host_syncs", "launches", "tokens", "loss", "target"} <= set(found)
