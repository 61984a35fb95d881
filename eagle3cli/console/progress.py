"""Progress of long jobs: bars on a terminal; elsewhere a plain line at most every ten seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress, TaskID

SECONDS_BETWEEN_LINES = 10.0
SHARE_TO_TELL_BY = 0.01
"""Of the work, before the time that is left can be told by what is under way alone."""


def duration(seconds: float) -> str:
    """A time as people write it: 0:07, 12:30, 3:04:05."""
    minutes, second = divmod(int(seconds + 0.5), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Job:
    """How far a job is, how fast it goes and what it says of itself."""

    def __init__(self, name: str, total: int | None, unit: str, done: int, board: Board | None = None) -> None:
        self.name = name
        self.total = total
        self.unit = unit
        self.done = done
        self.done_before = done
        self.under_way = 0.0
        """Units' worth of work on those that have begun and not ended."""
        self.board = board
        self.bar: TaskID | None = None
        self.notes: dict[str, object] = {}
        self.start = time.monotonic()
        self.last_shown = self.start

    def advance(self, count: int = 1, *, under_way: float | None = None, free: bool = False, **notes: object) -> None:
        """Count finished units, and show the job where it is time to."""
        self.done += count
        self.done_before += count if free else 0
        if under_way is not None:
            self.under_way = under_way
        self.notes.update(notes)
        if self.board is not None:
            self.board.show(self)

    @property
    def rate(self) -> float:
        """Units a second since the job began, without those of an earlier run."""
        return (self.done - self.done_before) / max(time.monotonic() - self.start, 1e-6)

    @property
    def pace(self) -> str:
        """``12.5 rows/s, 1:20 left``."""
        parts = [f"{self.rate:,.1f} {self.unit}/s"]
        if (left := self.seconds_left) is not None:
            parts.append(f"{duration(left)} left")
        return ", ".join(parts)

    @property
    def seconds_left(self) -> float | None:
        """By what was worked until now: rows that are decoded together end together, so those that ended tell little.
        None at the end, and before anything has ended or a little is under way: prompts take time before first tokens.
        """
        worked = self.done - self.done_before + self.under_way
        if self.total is None or self.done >= self.total or worked <= 0:
            return None
        if self.done == self.done_before and worked < SHARE_TO_TELL_BY * self.total:
            return None
        elapsed = time.monotonic() - self.start
        return max(0.0, self.total - self.done - self.under_way) * elapsed / worked

    @property
    def state(self) -> str:
        """``12.5 rows/s, 1:20 left, loss 0.42``."""
        return ", ".join([self.pace, *(f"{name} {_short(value)}" for name, value in self.notes.items())])

    @property
    def line(self) -> str:
        """The job in one line."""
        of = f"/{self.total:,}" if self.total is not None else ""
        share = f" ({100 * self.done / self.total:.0f}%)" if self.total else ""
        return f"{self.name}: {self.done:,}{of} {self.unit}{share}, {self.state}"


class Board:
    """All jobs now running on one stream, one below the other."""

    def __init__(self, stream: IO[str], *, live: bool) -> None:
        self.stream = stream
        self.live = live
        self.progress: Progress | None = None
        self.above: tuple[str, RenderableType] | None = None
        """What stands above the bars, and the job whose notes it shows already."""

    @contextmanager
    def task(self, name: str, total: int | None, unit: str, done: int) -> Iterator[Job]:
        """Show one job for the length of the block."""
        job = Job(name, total, unit, done, self)
        if self.live:
            self.progress = self.progress or self._start()
            job.bar = self.progress.add_task(name, total=total, completed=done, state="")
        try:
            yield job
        finally:
            if self.progress is not None and job.bar is not None:
                self.progress.remove_task(job.bar)
                if not self.progress.tasks:
                    self.progress.stop()
                    self.progress = None
            self._say(f"{job.line}, took {duration(time.monotonic() - job.start)}")

    def show(self, job: Job) -> None:
        """Redraw the job's bar; without one, write a line if ten seconds have passed since the last."""
        if self.progress is not None and job.bar is not None:
            brief = self.above is not None and self.above[0] == job.name
            self.progress.update(job.bar, completed=job.done, state=job.pace if brief else job.state)
        elif time.monotonic() - job.last_shown >= SECONDS_BETWEEN_LINES:
            job.last_shown = time.monotonic()
            self._say(job.line)

    def write(self, text: str, stream: IO[str]) -> bool:
        """Write a line above the bars; False if there are none and the caller writes it."""
        if self.progress is None or stream is sys.stdout and not stream.isatty():
            return False
        from rich.text import Text

        self.progress.console.print(Text.from_ansi(text), soft_wrap=True)
        return True

    def _say(self, text: str) -> None:
        if not self.write(text, self.stream):
            self.stream.write(text + "\n")
            self.stream.flush()

    def _start(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        board = self

        class Bars(Progress):
            def get_renderables(self) -> Iterator[RenderableType]:
                if board.above is not None:
                    yield board.above[1]
                yield self.make_tasks_table(self.tasks)

        progress = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}", markup=False),
            console=Console(file=self.stream),
            redirect_stdout=False,
            redirect_stderr=False,
        )
        progress.start()
        return progress
