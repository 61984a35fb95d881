"""What an experiment tracker is to a training run; each file of ``services/`` has the one that it is named after.

Such a file has two functions: ``check()`` raises UsageError where the tracker cannot work (no package, no key), and
``start(run)`` begins or goes on with a run of the tracker and returns a :class:`Tracker`.
"""

from __future__ import annotations

import importlib
import netrc
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from eagle3cli.errors import UsageError


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker needs to begin a run, or to go on with one."""

    folder: Path
    """For files of its own; inside the training run's folder."""
    project: str
    name: str
    """The run's name, for people."""
    config: Mapping[str, str | int | float | bool]
    """The settings, ``table.key``."""
    id: str | None = None
    """Its run of an earlier session."""
    last_step: int = -1
    """The last step that it is known to have."""


@dataclass(frozen=True)
class Tracker:
    """An open run of a tracker."""

    id: str
    """Finds this run again."""
    place: str
    """Where people see it: an address, or the command that shows it."""
    last_step: int
    """The last step that it had when it was opened; -1 for none."""
    log: Callable[[int, Mapping[str, float]], Any]
    """Records the numbers of a step; steps ascend."""
    close: Callable[[bool], Any]
    """Sends what is left, and ends the run; is given whether the training failed."""
    session: Path | None = None
    """A folder that is whole only once the run was closed; None where everything logged is safe at once."""


def selected_trackers(report_to: Iterable[str]) -> tuple[str, ...]:
    """The trackers that a setting names, each once; ``none`` is none."""
    return tuple(dict.fromkeys(name for name in report_to if name != "none"))


def service(name: str) -> Any:
    """The module of a tracker."""
    return importlib.import_module(f"eagle3cli.training.trackers.services.{name}")


def check_trackers(report_to: Iterable[str]) -> None:
    """Raise UsageError, before any work, for a tracker that cannot work here."""
    for name in selected_trackers(report_to):
        service(name).check()


def require_package(package: str) -> None:
    """Raise UsageError with the line to type where a tracker's package is not installed."""
    if find_spec(package) is None:
        fix = f'pip install "eagle3[track-{package}]"'
        raise UsageError(
            "missing-package", f"the Python package {package} is not installed", where="--report-to", fix=fix
        )


def has_login(variable: str, files: Sequence[Path], address: str) -> bool:
    """Whether a key stands in the environment, or was left in one of these netrc files for the host of an address."""
    if os.environ.get(variable):
        return True
    host = urlsplit(address).hostname or address
    for path in files:
        try:
            if netrc.netrc(path).authenticators(host):
                return True
        except (OSError, netrc.NetrcParseError):
            continue
    return False
