"""The trackers by the name that ``--report-to`` knows: each is one file of this folder."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any

FOLDER = "eagle3cli.training.trackers"
TRACKERS = {name: f"{FOLDER}.{name}" for name in ("wandb", "tensorboard", "swanlab", "mlflow", "trackio")}


def chosen(report_to: Iterable[str]) -> tuple[str, ...]:
    """The trackers that a setting names, each once; ``none`` is none."""
    return tuple(dict.fromkeys(name for name in report_to if name != "none"))


def module_of(name: str) -> Any:
    """The file of a tracker."""
    return importlib.import_module(TRACKERS[name])


def check_trackers(report_to: Iterable[str]) -> None:
    """Raise UsageError, before any work, for a tracker that cannot work here."""
    for name in chosen(report_to):
        module_of(name).ready()
