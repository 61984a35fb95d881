"""The length of a run, and its learning rate as a pure function of the step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from eagle3cli.settings.training import TrainSettings

Shape = Literal["cosine", "constant", "wsd"]
DECAY_SHARE = 0.2
"""Share of the steps that decay in the warm-up, stable, decay schedule."""
BUDGET_TICKS = 1_000_000
"""Steps that a whole time budget counts as in the schedule."""


@dataclass(frozen=True)
class Schedule:
    """When a run ends, by steps or by time, and its learning rate on the way."""

    settings: TrainSettings
    total_steps: int | None
    """None under a time budget without a number of steps."""
    budget_seconds: float | None = None

    def is_over(self, step: int, seconds: float) -> bool:
        """Whether a run that has done ``step`` steps in ``seconds`` of training has reached its end."""
        if self.total_steps is not None and step >= self.total_steps:
            return True
        return self.budget_seconds is not None and seconds >= self.budget_seconds

    def learning_rate(self, step: int, seconds: float) -> float:
        """Of 0-based ``step``; under a time budget the share of the time that is spent stands for the step."""
        total = self.total_steps or BUDGET_TICKS
        if self.budget_seconds is not None:
            step = max(step if self.total_steps else 0, int(total * seconds / self.budget_seconds))
        return learning_rate(
            step,
            peak=self.settings.learning_rate,
            total=total,
            warmup_ratio=self.settings.warmup_ratio,
            shape=self.settings.lr_schedule,
            floor_ratio=self.settings.min_lr_ratio,
        )


def total_steps(settings: TrainSettings, steps_per_epoch: int) -> int | None:
    """Steps of a run; under a time budget only an explicit ``total_steps`` ends it earlier."""
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
