"""The forecast of a step on a GPU beside the roofline, which counts the product's own step operator by operator."""

from __future__ import annotations

import pytest

from eagle3cli.training.forecast import gpu_time
from eagle3cli.training.forecast.memory import draft_weights, forecast
from eagle3cli.training.forecast.speed import visible_keys
from eagle3cli.training.forecast.throughput import GPUS
from tests.speed.step.roofline import TARGETS, count_step
from tests.speed.step.step_case import Case, packaged

MIXED = (300, 2048, 1024, 3000, 512, 90, 1500, 700)
SETTINGS = {
    "four sequences, half with loss": {"lengths": (4096,) * 4},
    "one long sequence, recomputed": {"lengths": (32_768,), "mask": 1.0, "recompute": True, "ttt": 4},
    "many lengths, by acceptance rate": {"lengths": MIXED, "mask": 0.7, "loss": "tv", "ttt": 5},
}
CLOSE = 0.05


@pytest.mark.slow
@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("target", TARGETS)
def test_the_forecast_agrees_with_the_roofline(target: str, setting: str) -> None:
    case = Case(packaged(target), **SETTINGS[setting])  # type: ignore[arg-type]
    costs, syncs = count_step(case)
    memory = forecast(case.workload(round(case.tokens * case.mask)))
    assert memory.peak_bytes == pytest.approx(costs.peak, rel=CLOSE)
    assert syncs.total() <= 2
    gpu = GPUS["H100"]
    replies = [round(n * case.mask) for n in case.lengths]
    seconds = gpu_time.draft_seconds(case.workload(sum(replies)), gpu, visible_keys(case.lengths, replies))
    update = gpu_time.OPTIMISER_BYTES * draft_weights(case.draft) / (gpu_time.MEMORY * gpu.memory_bandwidth)
    assert seconds + update == pytest.approx(costs.total().seconds, rel=CLOSE)
