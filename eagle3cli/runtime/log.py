"""A run's own log: whatever its reporter is told also goes to a file, with the time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import IO

from eagle3cli.runtime.files import disk_error
from eagle3cli.runtime.report import ProgressBar, Reporter


class LoggedProgressBar:
    """A bar of another reporter whose latest notes stand in the log at its end."""

    def __init__(self, inner: ProgressBar) -> None:
        self.inner = inner
        self.count = 0
        self.notes: dict[str, object] = {}

    def advance(self, count: int = 1, *, under_way: float | None = None, free: bool = False, **notes: object) -> None:
        """Pass on, and remember for the log."""
        self.count += count
        self.notes.update(notes)
        self.inner.advance(count, under_way=under_way, free=free, **notes)


class Logged:
    """A reporter that passes everything on and also writes it down; a full disk ends no run for its log's sake."""

    def __init__(self, inner: Reporter, path: Path) -> None:
        self.inner = inner
        self.path = path
        self.file: IO[str] | None = None
        self.complete = True
        self._held: list[str] = []

    def begin(self) -> None:
        """Write down what was told so far, and from now on everything as it is told."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.file = self.path.open("a", encoding="utf-8")
        held = self._held
        self._held = []
        for line in held:
            self._append(line)

    def close(self) -> None:
        """Write nothing more."""
        if self.file is not None:
            with suppress(OSError):  # what could not be written has been told
                self.file.close()

    def info(self, text: str) -> None:
        """Pass on and write down."""
        self._write(text)
        self.inner.info(text)

    def warn(self, text: str) -> None:
        """Pass on and write down."""
        self._write(f"warning: {text}")
        self.inner.warn(text)

    def task(
        self, name: str, total: int | None = None, unit: str = "rows", done: int = 0
    ) -> AbstractContextManager[ProgressBar]:
        """Pass on; the log has a line when the job begins and one when it ends."""
        return self._task(name, total, unit, done)

    @contextmanager
    def _task(self, name: str, total: int | None, unit: str, done: int) -> Iterator[ProgressBar]:
        of = f" of {total:,}" if total is not None else ""
        self._write(f"{name}: begins at {done:,}{of} {unit}")
        with self.inner.task(name, total, unit, done) as inner:
            logged = LoggedProgressBar(inner)
            try:
                yield logged
            finally:
                notes = "".join(f", {key} {value}" for key, value in logged.notes.items())
                self._write(f"{name}: ends at {done + logged.count:,}{of} {unit}{notes}")

    def _write(self, text: str) -> None:
        now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        self._append(f"{now} {text}\n")

    def _append(self, line: str) -> None:
        if self.file is None:
            self._held.append(line)
            return
        try:
            self.file.write(line)
            self.file.flush()
        except OSError as error:
            if self.complete:
                self.inner.warn(f"{disk_error(error, self.path)}; the run goes on without it")
            self.complete = False


@contextmanager
def logged(report: Reporter, path: Path, *, held: bool = False) -> Iterator[Logged]:
    """Append what ``report`` is told within the block to the text file ``path``.

    ``held``: nothing is written before :meth:`Logged.begin`, and nothing at all without it.
    """
    log = Logged(report, path)
    if not held:
        log.begin()
    try:
        yield log
    finally:
        log.close()
