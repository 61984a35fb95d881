"""A run as a screen shows it, and how its files are followed while they grow."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

from eagle3cli.console.screen import TrainingView
from eagle3cli.runs.events import Event, sound
from eagle3cli.runs.folder import Run, log_lines, read_about
from eagle3cli.runs.page import breakdown, peak_memory
from eagle3cli.runs.state import State
from eagle3cli.training.history import HISTORY, parse_events

RECENT = 20
"""Step lines that speed, time left and the breakdown are taken from."""
MOST_LINES = 4000
"""Step lines kept in memory; of more, every other of the older ones goes."""


class Followed:
    """A run whose files are read on from where they were read last."""

    def __init__(self, folder: Path) -> None:
        self.run = Run(folder)
        self._which: tuple[int, int] | None = None
        self._at = 0

    def read(self) -> Run:
        """The run with everything that was written since; from the start where the file is another one."""
        self.run.about = read_about(self.run.folder)
        try:
            with (self.run.folder / HISTORY).open("rb") as file:
                status = os.fstat(file.fileno())
                which = (status.st_dev, status.st_ino)
                if which != self._which or status.st_size < self._at:
                    self._which, self._at, self.run.steps, self.run.evals = which, 0, [], []
                file.seek(self._at)
                whole, end, _ = file.read().rpartition(b"\n")
        except OSError:
            return self.run
        self._at += len(whole) + len(end)
        add(self.run, *parse_events(whole.decode(errors="replace")))
        return self.run


def add(run: Run, *events: Event) -> None:
    """More events of a run that is followed."""
    steps, evals = sound(events)
    run.evals += evals
    run.steps += steps
    while len(run.steps) > MOST_LINES:
        older = MOST_LINES - MOST_LINES // 4
        run.steps[:older] = run.steps[:older:2]


def view_of(run: Run, state: State) -> TrainingView:
    """The run as it is shown."""
    recent, last = run.steps[-RECENT:], run.steps[-1] if run.steps else None
    best, evaluated = run.best, run.measured[-1] if run.measured else None
    k = len(evaluated["acceptance_length"]) if evaluated else 0
    return TrainingView(
        name=str(run.folder),
        state=state.told,
        step=run.last_step,
        total=run.about.get("total_steps"),
        seconds=run.seconds,
        left=None if state.ended else time_left(run),
        loss=last["loss"] if last else None,
        losses=_numbers(run.steps, "loss"),
        accuracy=last.get("accuracy") or () if last else (),
        k=k,
        acceptance=evaluated["acceptance_length"][-1] if evaluated else None,
        best=best["acceptance_length"][-1] if best else None,
        best_step=best["step"] if best else None,
        acceptances=[event["acceptance_length"][-1] for event in run.measured],
        tokens_per_s=last.get("tokens_per_s") if last else None,
        speeds=_numbers(run.steps, "tokens_per_s"),
        memory=peak_memory(run),
        time=breakdown(recent[1:], recent[0].get("seconds", 0.0)) if len(recent) > 1 else breakdown(recent),
        checkpoint=newest_checkpoint(run.folder),
        silent=state.silent,
        log=None if run.steps else next(iter(log_lines(run.folder, 4096)[-1:]), None),
    )


def _numbers(events: list[Event], name: str) -> list[float]:
    return [
        float(event[name])
        for event in events
        if isinstance(event.get(name), int | float) and math.isfinite(event[name])
    ]


def time_left(run: Run) -> float | None:
    """Seconds of training to go, as fast as lately; None where that cannot be told."""
    budget, total = run.about.get("budget_seconds"), run.about.get("total_steps")
    lefts = [max(0.0, budget - run.seconds)] if isinstance(budget, int | float) else []
    recent = [event for event in run.steps[-RECENT:] if "seconds" in event]
    if isinstance(total, int) and recent:
        first = recent[0] if len(recent) > 1 else {"step": 0, "seconds": 0.0}
        steps, took = recent[-1]["step"] - first["step"], recent[-1]["seconds"] - first["seconds"]
        lefts += [max(0.0, (total - run.last_step) * took / steps)] if steps > 0 else []
    return min(lefts, default=None)


def newest_checkpoint(folder: Path) -> int | None:
    """The step of the newest whole checkpoint."""
    names = (re.fullmatch(r"epoch_\d+_step_(\d+)", path.name) for path in (folder / "checkpoints").glob("epoch_*"))
    return max((int(match[1]) for match in names if match), default=None)
