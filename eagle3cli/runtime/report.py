"""How long work tells people what it is doing, without knowing about terminals.

Code below ``commands/`` takes a :class:`Reporter`; ``console`` has the one that draws, tests use :class:`Silent`.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class ProgressBar(Protocol):
    """A job with a known or unknown number of units."""

    def advance(self, count: int = 1, *, under_way: float | None = None, free: bool = False, **notes: object) -> None:
        """Count ``count`` finished units; ``notes`` (name = value) are shown beside the bar.

        ``under_way`` is what is done, in units, of those that have begun and not ended; it stands until told anew.
        ``free`` units cost no time, as those that are copied: they say nothing of how long the others take.
        """


class Reporter(Protocol):
    """Receives what a person should know."""

    def info(self, text: str) -> None:
        """A plain remark."""

    def warn(self, text: str) -> None:
        """Something that a person should look at."""

    def task(
        self, name: str, total: int | None = None, unit: str = "rows", done: int = 0
    ) -> AbstractContextManager[ProgressBar]:
        """Begin a job; ``done`` units were finished by an earlier run. Ends with the block."""


class SilentProgressBar:
    """A task that shows nothing."""

    def advance(self, count: int = 1, *, under_way: float | None = None, free: bool = False, **notes: object) -> None:
        """Show nothing."""


class Silent:
    """A reporter that shows nothing, but keeps the warnings."""

    def __init__(self) -> None:
        self.warnings: list[str] = []

    def info(self, text: str) -> None:
        """Show nothing."""

    def warn(self, text: str) -> None:
        """Keep the warning."""
        self.warnings.append(text)

    def task(
        self, name: str, total: int | None = None, unit: str = "rows", done: int = 0
    ) -> AbstractContextManager[ProgressBar]:
        """Begin a job that shows nothing."""
        return nullcontext(SilentProgressBar())
