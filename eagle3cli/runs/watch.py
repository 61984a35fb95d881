"""Following a run by its files alone, until it ends."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

from eagle3cli.console.live import LiveView
from eagle3cli.console.screen import TrainingView
from eagle3cli.errors import UsageError
from eagle3cli.runs.find import Found
from eagle3cli.runs.folder import is_run
from eagle3cli.runs.pipeline import chain_of
from eagle3cli.runs.state import State, state_of
from eagle3cli.runs.view import Followed, view_of

SECONDS = 1.0
"""Between two looks at the files."""


class Watched:
    """A run of `train`, or a chain with the training in it; what is shown of it, as often as asked."""

    def __init__(self, found: Found, training: Path) -> None:
        if found.kind == "bench":
            fix = "a finished one: eagle3 report; eagle3 run writes folders that can be watched while they measure"
            raise UsageError("is a benchmark, which keeps no log to watch", where=str(found.path), fix=fix)
        self.found = found
        self.followed = Followed(training)

    def look(self) -> tuple[TrainingView, State]:
        """The run as it is now."""
        run = self.followed.read()
        if self.found.kind == "train":
            state = state_of(run.folder, run.about)
            return view_of(run, state), state
        chain = chain_of(self.found.path)
        if not is_run(run.folder):
            view = TrainingView(str(self.found.path), chain.state.told, silent=chain.state.silent)
        else:
            view = view_of(run, chain.state)
            view = view if chain.stage == "train" else replace(view, left=None)
        return replace(view, name=str(self.found.path), stages=chain.told), chain.state


def follow(watched: Watched, screen: LiveView) -> tuple[TrainingView, State]:
    """Show the run until it ends; returns its last view."""
    while True:
        view, state = watched.look()
        screen.show(view)
        if state.ended:
            return view, state
        time.sleep(SECONDS)
