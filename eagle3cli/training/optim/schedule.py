"""The learning rate as a pure function of the step."""

from __future__ import annotations

import math
from typing import Literal

from eagle3cli.settings.training import TrainSettings

Shape = Literal["cosine", "constant", "wsd"]
DECAY_SHARE = 0.2
"""Share of the steps that decay in the warm-up, stable, decay schedule."""


def total_steps(settings: TrainSettings, steps_per_epoch: int) -> int | None:
    """Optimizer steps of a run; None where a time budget alone ends it."""
    if settings.time_budget is not None:
        return settings.total_steps
    return min(steps_per_epoch * settings.num_epochs, settings.total_steps or 10**12)


def learning_rate(
    step: int, *, peak: float, total: int, warmup_ratio: float, shape: Shape = "cosine", floor_ratio: float = 0.0
) -> float:
    """Learning rate of 0-based ``step``: linear warm-up to ``peak``, then the shape, ending at ``peak * floor_ratio``.

    The first step is not at zero, and neither chaining nor history matters, so any step can be resumed or skipped to.
    """
    warmup = int(warmup_ratio * total)
    if step < warmup:
        return peak * (step + 1) / warmup
    if shape == "constant":
        return peak
    if shape == "wsd":
        begin = max(warmup, int(total * (1 - DECAY_SHARE)))
        if step < begin:
            return peak
        done = min(1.0, (step - begin) / max(1, total - begin))
        return peak * (1 - done * (1 - floor_ratio))
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return peak * (floor_ratio + (1 - floor_ratio) * (1 + math.cos(math.pi * done)) / 2)
