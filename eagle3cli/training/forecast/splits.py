"""Which split of a run's processes between target and draft is the best, beside all of them doing both.

By the forecasts of memory and speed alone: those of :mod:`~eagle3cli.training.forecast.speed` order the splits, and the
first of them that fits is told.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from eagle3cli.runtime.units import size_text
from eagle3cli.settings.tables import Settings
from eagle3cli.training.batches import sampler_of
from eagle3cli.training.forecast.inputs import RunInputs
from eagle3cli.training.forecast.memory import forecast
from eagle3cli.training.forecast.speed import Speed, forecast_speed
from eagle3cli.training.forecast.target_rank import forecast_target_rank
from eagle3cli.training.forecast.workload import training_workload
from eagle3cli.training.split import WORTH

LARGEST_TARGET = 8
"""Processes that one target is spread over at most where it does not fit on fewer: those of a node."""
TRIED = 8
"""Splits of one size of targets whose memory is looked at, the fastest first."""


@dataclass(frozen=True)
class PlannedSplit:
    """A split with what it would take."""

    target_gpus: int
    """0 where all processes do both."""
    processes: int
    tp_size: int
    seconds: float
    """Of a step."""
    tokens_per_s: float
    draft_bytes: int
    """Of each process that trains; where all do both, of each of all."""
    target_bytes: int
    """Of each process that holds the target alone; 0 where there is none."""
    fits: bool | None
    """None where it is not known how much memory there is."""

    def flags(self, tp_size: int) -> str:
        """As flags of a run that has ``tp_size`` now."""
        spread = "" if tp_size == self.tp_size else f" --tp-size {self.tp_size}"
        return f"--target-gpus {self.target_gpus}{spread}"

    def text(self) -> str:
        """Speed and memory, for people."""
        sizes = f"{size_text(self.draft_bytes)} of each"
        if self.target_gpus:
            drafts = self.processes - self.target_gpus
            sizes = f"{size_text(self.target_bytes)} of each of {self.target_gpus} for the target, "
            sizes += f"{size_text(self.draft_bytes)} of each of {drafts} for the draft"
        return f"{self.tokens_per_s:,.0f} tokens/s, {sizes}"


@dataclass(frozen=True)
class Splits:
    """All processes doing both, and the best split of them; None for what cannot be."""

    together: PlannedSplit | None
    best: PlannedSplit | None
    tp_size: int
    """That the settings have."""

    def lines(self) -> list[str]:
        """For people: both, the one that is proposed first."""
        together = self.together
        best = self.best
        if best is None:
            return []
        apart = f"{best.flags(self.tp_size)}: {best.text()}"
        if together is None:
            return [f"best split, {apart}"]
        both = f"all {best.processes} doing both: {together.text()}"
        if self.helps == "memory":
            return [f"a split fits where all doing both do not, {apart} ({both})"]
        if self.helps:
            return [f"a split would take {1 - best.seconds / together.seconds:.0%} less time, {apart} ({both})"]
        return [f"no split of the {best.processes} is faster than all doing both; the best, {apart} ({both})"]

    @property
    def helps(self) -> str | None:
        """What the best split is good for beside all doing both, ``memory`` or ``time``; None where it is not."""
        if self.together is None or self.best is None:
            return None
        if self.together.fits is False:
            return "memory" if self.best.fits else None
        return "time" if self.best.seconds < self.together.seconds * (1 - WORTH) else None

    def numbers(self) -> dict[str, Any]:
        """For JSON."""
        named = {"together": self.together, "best": self.best}
        return {**{name: each and asdict(each) for name, each in named.items()}, "helps": self.helps}


def plan_splits(
    settings: Settings, inputs: RunInputs, processes: int, room: int | None, *, resumes: bool = False
) -> Splits | None:
    """The best split of ``processes``; None where there is nothing to split. ``room`` are bytes of each process's
    device, None where they are not known.

    A target too large for its ``tp_size`` is tried over more processes.
    """
    train = settings.train
    size = settings.target.tp_size
    if train.mode == "offline" or processes <= size or settings.target.spreads or train.context_parallel > 1:
        return None
    planned = _Forecaster(settings, inputs, processes, room, resumes)
    together = planned.split(0, size) if processes % size == 0 else None
    sizes = (
        [size] if room is None else [size << more for more in range(4) if not more or size << more <= LARGEST_TARGET]
    )
    bests = (planned.best(tp_size) for tp_size in sizes if tp_size < processes)
    return Splits(together, next(filter(None, bests), None), size)


@dataclass(frozen=True)
class _Forecaster:
    settings: Settings
    inputs: RunInputs
    processes: int
    room: int | None
    resumes: bool

    def best(self, tp_size: int) -> PlannedSplit | None:
        """The fastest split with targets over ``tp_size`` processes each that is not known not to fit."""
        speed = self._speed(self._changed(tp_size, tp_size), tp_size)
        assert speed.split is not None
        work = speed.split.work
        most_drafts = self.settings.train.batch_size
        choices = [n for n in range(tp_size, self.processes, tp_size) if self.processes - n <= most_drafts]
        choices.sort(key=lambda targets: (work.step_seconds(targets, self.processes - targets), targets))
        splits = (self.split(targets, tp_size) for targets in choices[:TRIED])
        return next((split for split in splits if split.fits is not False), None)

    def split(self, targets: int, tp_size: int) -> PlannedSplit:
        """The forecast of one split; of no target on processes of its own: all of them doing both."""
        changed = self._changed(targets, tp_size)
        work = training_workload(changed, self.inputs, self.processes - targets, resumes=self.resumes)
        step = self._speed(changed, targets).step
        draft_bytes = forecast(work).peak_bytes
        target_bytes = forecast_target_rank(work).peak_bytes if targets else 0
        fits = None if self.room is None else max(draft_bytes, target_bytes) <= self.room
        return PlannedSplit(
            targets, self.processes, tp_size, step.total, step.tokens_per_s, draft_bytes, target_bytes, fits
        )

    def _changed(self, targets: int, tp_size: int) -> Settings:
        settings = self.settings.updated("target", tp_size=tp_size)
        encoding = settings.launch.transfer_encoding if targets else "exact"
        return settings.updated("launch", target_gpus=targets or None, transfer_encoding=encoding)

    def _speed(self, settings: Settings, targets: int) -> Speed:
        order = sampler_of(settings.train, len(self.inputs.data.lengths))
        return forecast_speed(settings, self.inputs, self.processes - targets, order)
