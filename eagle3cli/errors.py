"""The errors that people see, and the exit codes of the program."""

from __future__ import annotations

DONE = 0
FAILED = 1
USAGE = 2
SOME_ROWS_FAILED = 3
STOPPED = 128
"""Added to the number of the signal that ended the program."""


class Eagle3Error(Exception):
    """Something a person can fix: says what is wrong, where, and how to fix it.

    ``where`` is a file and line, a settings key or a flag; ``fix`` is a sentence that says what to change.
    """

    exit_code = FAILED

    def __init__(self, what: str, *, where: str | None = None, fix: str | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix

    def __str__(self) -> str:
        parts = [f"{self.where}: {self.what}" if self.where else self.what]
        return "\n".join([*parts, f"fix: {self.fix}"] if self.fix else parts)


def reason_of(error: Eagle3Error) -> str:
    """On one line why a row is left out: what is wrong, and where."""
    return f"{error.what}: {error.where}" if error.where else error.what


class UsageError(Eagle3Error):
    """A wrong flag, a wrong setting, or a combination that cannot work."""

    exit_code = USAGE


class DataError(Eagle3Error):
    """An input file or row that cannot be used."""


class ModelError(Eagle3Error):
    """A target or draft model that cannot be loaded or does not fit."""


class Stopped(Eagle3Error):
    """The user or the system asked the program to stop; work was saved."""

    def __init__(self, signal_number: int, what: str, *, fix: str | None = None) -> None:
        super().__init__(what, fix=fix)
        self.exit_code = STOPPED + signal_number
