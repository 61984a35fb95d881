"""Progress of long jobs: bars on a terminal; elsewhere a plain line at most every ten seconds."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING

from eagle3cli.runtime.report import ProgressBar

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.progress import Progress

SECONDS_BETWEEN_LINES = 10.0


def duration(seconds: float) -> str:
    """A time as people write it: 0:07, 12:30, 3:04:05."""
    minutes, second = divmod(int(seconds + 0.5), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class Count:
    """How far a job is, how fast it goes and what it says of itself."""

    def __init__(self, name: str, total: int | None, unit: str, done: int) -> None:
        self.name, self.total, self.unit = name, total, unit
        self.done = self.done_before = done
        self.notes: dict[str, object] = {}
        self.start = time.monotonic()

    @property
    def rate(self) -> float:
        """Units a second since the job began, without those of an earlier run."""
        return (self.done - self.done_before) / max(time.monotonic() - self.start, 1e-6)

    @property
    def pace(self) -> str:
        """``12.5 rows/s, 1:20 left``."""
        parts = [f"{self.rate:,.1f} {self.unit}/s"]
        if self.total is not None and self.rate > 0 and self.done < self.total:
            parts.append(f"{duration((self.total - self.done) / self.rate)} left")
        return ", ".join(parts)

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

    @property
    def last_line(self) -> str:
        """The job when it ended, done or not."""
        took = duration(time.monotonic() - self.start)
        return f"{self.line}, took {took}"


class PlainTask:
    """A job shown as a line now and then."""

    def __init__(self, count: Count, stream: IO[str]) -> None:
        self.count, self.stream = count, stream
        self.last = time.monotonic()

    def advance(self, count: int = 1, **notes: object) -> None:
        """Count finished units and show a line if ten seconds have passed since the last."""
        self.count.done += count
        self.count.notes.update(notes)
        if time.monotonic() - self.last >= SECONDS_BETWEEN_LINES:
            self.last = time.monotonic()
            self.say(self.count.line)

    def say(self, text: str) -> None:
        """Write one line."""
        self.stream.write(text + "\n")
        self.stream.flush()


class BarTask:
    """A job shown as a bar."""

    def __init__(self, count: Count, progress: Progress, board: Board) -> None:
        self.count, self.progress, self.board = count, progress, board
        self.id = progress.add_task(count.name, total=count.total, completed=count.done, state="")

    def advance(self, count: int = 1, **notes: object) -> None:
        """Count finished units and redraw."""
        self.count.done += count
        self.count.notes.update(notes)
        brief = self.board.above is not None and self.board.above[0] == self.count.name
        state = self.count.pace if brief else self.count.state
        self.progress.update(self.id, completed=self.count.done, state=state)


class Board:
    """All jobs now running on one stream, one below the other."""

    def __init__(self, stream: IO[str], *, live: bool) -> None:
        self.stream, self.live = stream, live
        self.progress: Progress | None = None
        self.running = 0
        self.above: tuple[str, RenderableType] | None = None
        """What stands above the bars, and the job whose notes it tells already."""

    @contextmanager
    def task(self, name: str, total: int | None, unit: str, done: int) -> Iterator[ProgressBar]:
        """Show one job for the length of the block."""
        count = Count(name, total, unit, done)
        if not self.live:
            task = PlainTask(count, self.stream)
            try:
                yield task
            finally:
                task.say(count.last_line)
            return
        progress = self._begin()
        bar = BarTask(count, progress, self)
        try:
            yield bar
        finally:
            progress.remove_task(bar.id)
            self._end(count)

    def write(self, text: str, stream: IO[str]) -> bool:
        """Write a line above the bars; False if there are none and the caller writes it."""
        if self.progress is None or stream is sys.stdout and not stream.isatty():
            return False
        from rich.text import Text

        self.progress.console.print(Text.from_ansi(text), soft_wrap=True)
        return True

    def _begin(self) -> Progress:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        board = self

        class Bars(Progress):
            def get_renderables(self) -> Iterator[RenderableType]:
                if board.above is not None:
                    yield board.above[1]
                yield self.make_tasks_table(self.tasks)

        if self.progress is None:
            state = TextColumn("{task.fields[state]}", markup=False)
            name = TextColumn("{task.description}", markup=False)
            self.progress = Bars(
                name,
                BarColumn(bar_width=24),
                MofNCompleteColumn(),
                state,
                console=Console(file=self.stream),
                redirect_stdout=False,
                redirect_stderr=False,
            )
            self.progress.start()
        self.running += 1
        return self.progress

    def _end(self, count: Count) -> None:
        self.running -= 1
        if self.running == 0 and self.progress is not None:
            self.progress.stop()
            self.progress = None
        if not self.write(count.last_line, self.stream):
            self.stream.write(count.last_line + "\n")
            self.stream.flush()
