"""A run as a screen shows it, and how its files are followed while they grow."""

from __future__ import annotations

import math
import os
import re
from pathlib import Path

from eagle3cli.console.screen import TrainingView
from eagle3cli.runs.events import Event, valid_events
from eagle3cli.runs.folder import Run, log_lines, read_metadata, served_lengths
from eagle3cli.runs.page import breakdown, peak_memory
from eagle3cli.runs.state import State
from eagle3cli.training.history import HISTORY, parse_events

RECENT = 20
"""Step lines that speed, time left and the breakdown are taken from."""
MOST_LINES = 4000
"""Step lines kept in memory; of more, every other of the older ones goes."""


class RunFollower:
    """A run whose files are read on from where they were read last."""

    def __init__(self, folder: Path) -> None:
        self.run = Run(folder)
        self._file: tuple[int, int] | None = None
        self._position = 0

    def read(self) -> Run:
        """The run with everything that was written since; from the start where the file is another one."""
        self.run.metadata = read_metadata(self.run.folder)
        try:
            with (self.run.folder / HISTORY).open("rb") as file:
                status = os.fstat(file.fileno())
                identity = (status.st_dev, status.st_ino)
                if identity != self._file or status.st_size < self._position:
                    self._file = identity
                    self._position = 0
                    self.run.steps.clear()
                    self.run.evals.clear()
                file.seek(self._position)
                lines, end, _ = file.read().rpartition(b"\n")
        except OSError:
            return self.run
        self._position += len(lines) + len(end)
        add_events(self.run, *parse_events(lines.decode(errors="replace")))
        return self.run


def add_events(run: Run, *events: Event) -> None:
    """More events of a run that is followed."""
    steps, evals = valid_events(events)
    run.evals += evals
    run.steps += steps
    while len(run.steps) > MOST_LINES:
        older = MOST_LINES - MOST_LINES // 4
        run.steps[:older] = run.steps[:older:2]


def training_view(run: Run, state: State) -> TrainingView:
    """The run as it is shown."""
    recent = run.steps[-RECENT:]
    last: Event = run.steps[-1] if run.steps else {}
    best = run.best or {}
    lengths = served_lengths(run.measured[-1]) if run.measured else []
    return TrainingView(
        name=str(run.folder),
        state=state.message,
        step=run.last_step,
        total=run.metadata.get("total_steps"),
        seconds=run.seconds,
        left=None if state.ended else time_left(run),
        loss=last.get("loss"),
        losses=_numbers(run.steps, "loss"),
        accuracy=last.get("accuracy") or (),
        k=len(lengths),
        acceptance=lengths[-1] if lengths else None,
        best=served_lengths(best)[-1] if best else None,
        best_step=best.get("step"),
        acceptances=[served_lengths(event)[-1] for event in run.measured],
        tokens_per_s=last.get("tokens_per_s"),
        speeds=_numbers(run.steps, "tokens_per_s"),
        memory=peak_memory(run),
        time=breakdown(recent[1:], recent[0].get("seconds", 0.0)) if len(recent) > 1 else breakdown(recent),
        checkpoint=newest_checkpoint(run.folder),
        silent=state.idle_seconds,
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
    budget = run.metadata.get("budget_seconds")
    total = run.metadata.get("total_steps")
    estimates = [max(0.0, budget - run.seconds)] if isinstance(budget, int | float) else []
    recent = [event for event in run.steps[-RECENT:] if "seconds" in event]
    if isinstance(total, int) and recent:
        first = recent[0] if len(recent) > 1 else {"step": 0, "seconds": 0.0}
        steps = recent[-1]["step"] - first["step"]
        if steps > 0:
            seconds = recent[-1]["seconds"] - first["seconds"]
            estimates.append(max(0.0, (total - run.last_step) * seconds / steps))
    return min(estimates, default=None)


def newest_checkpoint(folder: Path) -> int | None:
    """The step of the newest whole checkpoint."""
    names = (re.fullmatch(r"epoch_\d+_step_(\d+)", path.name) for path in (folder / "checkpoints").glob("epoch_*"))
    return max((int(match[1]) for match in names if match), default=None)
