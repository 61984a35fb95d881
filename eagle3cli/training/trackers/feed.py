"""One tracker of a run, fed on a thread of its own, so that a slow or broken one neither delays nor ends the training.

What a tracker gets are the lines of ``metrics.jsonl``, those of earlier sessions first, as far as it lacks them: so a
tracker that was killed, unreachable or chosen later ends with every step, and with each once. ``trackers/NAME.json``
in the run's folder keeps the id of its run and how far it is known to be.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from eagle3cli.errors import Eagle3Error
from eagle3cli.runtime.files import read_json, write_json
from eagle3cli.runtime.secret import hidden
from eagle3cli.training.trackers.metric_names import GROUPS, named_metrics
from eagle3cli.training.trackers.tracker import TrackedRun, Tracker

CUT_OFF = "cut-off-"
"""Before the name of a session's folder that a kill left unfinished; the next session logs its steps again."""


@dataclass(frozen=True)
class TrackerState:
    """What is known of a tracker's run between sessions."""

    id: str | None = None
    last_step: int = -1
    session: str | None = None
    """A folder that is not whole as long as it stands here."""


def read_state(path: Path) -> TrackerState:
    """The state in a file; an empty one where there is none that can be read."""
    with suppress(Eagle3Error, TypeError, ValueError, KeyError):
        raw = read_json(path)
        session = raw["session"]
        return TrackerState(str(raw["id"]), int(raw["last_step"]), session if session is None else str(session))
    return TrackerState()


class Feed:
    """The thread of one tracker. ``start_tracker`` is the function ``start`` of its file."""

    def __init__(self, name: str, start_tracker: Callable[[TrackedRun], Tracker], run: TrackedRun) -> None:
        self.name = name
        self.start_tracker = start_tracker
        self.path = run.folder.with_name(f"{name}.json")
        self.state = read_state(self.path)
        self.run = replace(run, id=self.state.id, last_step=self.state.last_step)
        self.queue: SimpleQueue[tuple[str, Mapping[str, Any]] | bool] = SimpleQueue()
        self.messages: SimpleQueue[str] = SimpleQueue()
        """Remarks for people."""
        self.problem: str | None = None
        """Why the tracker was left out."""
        self.thread = threading.Thread(target=self._work, name=f"tracker {name}", daemon=True)

    def start(self) -> None:
        """Open the tracker, in the background."""
        self.thread.start()

    def put(self, event: str, numbers: Mapping[str, Any]) -> None:
        """Hand over the numbers of an event; trackers begin with the first step."""
        if self.problem is None and event in GROUPS:
            self.queue.put((event, dict(numbers)))

    def close(self, *, failed: bool, patience: float) -> None:
        """Have everything logged and the tracker closed, or leave it out after ``patience`` seconds."""
        self.queue.put(failed)
        self.thread.join(patience)
        if self.thread.is_alive() and self.problem is None:
            self.problem = f"did not end within {patience:.0f} seconds"

    def _work(self) -> None:
        try:
            self._set_aside()
            tracker = self.start_tracker(self.run)
            session = None if tracker.session is None else str(tracker.session)
            self._save(TrackerState(tracker.id, self.state.last_step, session))
            self.messages.put(f"{self.name}: {hidden(tracker.place)}")
            try:
                failed = self._feed(tracker)
            except Exception:
                with suppress(Exception):
                    tracker.close(True)
                raise
            tracker.close(failed)
            self._save(replace(self.state, session=None))
        except Exception as error:  # whatever breaks in a tracker is no reason to end a training
            text = str(error).strip().split("\n")[0]
            self.problem = hidden(f"{type(error).__name__}: {text}" if text else type(error).__name__)

    def _set_aside(self) -> None:
        """Rename what a killed session left half written, so that it is not taken for whole."""
        session = Path(self.state.session) if self.state.session else None
        if session is not None and session.is_dir() and self.run.folder.resolve() in session.resolve().parents:
            session.rename(session.with_name(f"{CUT_OFF}{session.name}-{int(time.time())}"))

    def _feed(self, tracker: Tracker) -> bool:
        """Log until the end is announced; returns whether the training failed."""
        step = -1
        numbers = dict[str, float]()
        while True:
            item = self.queue.get()
            at = None if isinstance(item, bool) else int(item[1]["step"])
            if at != step and step > tracker.last_step and numbers:
                tracker.log(step, numbers)
                if tracker.session is None:
                    self._save(replace(self.state, last_step=step))
                else:
                    self.state = replace(self.state, last_step=step)
            if isinstance(item, bool):
                return item
            if at != step:
                step = int(item[1]["step"])
                numbers = {}
            numbers |= named_metrics(*item)

    def _save(self, state: TrackerState) -> None:
        self.state = state
        write_json(self.path, asdict(state))
