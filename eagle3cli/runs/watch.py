"""Following a run by its files alone, until it ends."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from eagle3cli.console.live import LiveView
from eagle3cli.console.screen import TrainingView
from eagle3cli.errors import UsageError
from eagle3cli.runs.find import RunPath
from eagle3cli.runs.folder import is_run
from eagle3cli.runs.pipeline import pipeline_progress
from eagle3cli.runs.state import State, state_of
from eagle3cli.runs.view import RunFollower, training_view

SECONDS = 1.0
"""Between two looks at the files."""


class RunWatcher:
    """A run of `train`, or a pipeline with the training in it; what is shown of it, as often as asked."""

    def __init__(self, location: RunPath, training: Path) -> None:
        if location.kind == "bench":
            fix = "a finished one: eagle3 report; eagle3 run writes folders that can be watched while they measure"
            raise UsageError(
                "not-a-file", "is a benchmark, which keeps no log to watch", where=str(location.path), fix=fix
            )
        self.location = location
        self.follower = RunFollower(training)

    def view(self) -> tuple[TrainingView, State]:
        """The run as it is now."""
        run = self.follower.read()
        if self.location.kind == "train":
            state = state_of(run.folder, run.metadata)
            return training_view(run, state), state
        progress = pipeline_progress(self.location.path)
        if not is_run(run.folder):
            view = TrainingView(str(self.location.path), progress.state.message, silent=progress.state.idle_seconds)
        else:
            view = training_view(run, progress.state)
            view = view if progress.stage == "train" else replace(view, left=None)
        return replace(view, name=str(self.location.path), stages=progress.summary), progress.state


def follow(watcher: RunWatcher, screen: LiveView) -> tuple[TrainingView, State]:
    """Show the run until it ends; returns its last view."""
    while True:
        view, state = watcher.view()
        screen.show(view)
        if state.ended:
            return view, state
        time.sleep(SECONDS)
