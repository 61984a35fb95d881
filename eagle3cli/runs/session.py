"""What a training session leaves for people: ``run.json`` with its state, and ``report.html`` at every evaluation.

Nothing in here ends a run: what cannot be written is a warning.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from eagle3cli import __version__
from eagle3cli.console.report import html
from eagle3cli.console.samples import sample_of
from eagle3cli.data.inspect.show import show
from eagle3cli.errors import Stopped
from eagle3cli.runs.folder import ABOUT, REPORT, read_about, read_run
from eagle3cli.runs.page import training_page
from eagle3cli.runs.state import FAILED, FINISHED, RUNNING, STOPPED, process, sessions_of
from eagle3cli.runtime.files import write_json, write_text
from eagle3cli.runtime.report import Reporter
from eagle3cli.settings.tables import Settings
from eagle3cli.training.parallel import size
from eagle3cli.training.trainer import Trainer

SAMPLES = 3
COST = 20.0
"""A report is not written anew before this many times the seconds that the last one took have passed."""


@contextmanager
def recorded(trainer: Trainer, settings: Settings, report: Reporter) -> Iterator[None]:
    """Within the block the run is on; at its end ``run.json`` says how it ended. For the first rank."""
    folder = trainer.output_dir
    about = read_about(folder)
    sessions = [*sessions_of(about), {"state": RUNNING, "began": _now(), **process()}]
    try:
        about = {**_about(trainer), "samples": about.get("samples") or _samples(trainer, settings, report)}
    except Exception as error:
        report.warn(f"{folder / ABOUT} lacks what the run is: {error}")
    _write_about(folder, {**about, "sessions": sessions}, report)
    trainer.listeners = [*trainer.listeners, _Writer(folder, report).listen]
    try:
        yield
        ending: dict[str, Any] = {"state": FINISHED}
    except (Stopped, KeyboardInterrupt):
        ending = {"state": STOPPED}
        raise
    except BaseException as error:
        ending = {"state": FAILED, "reason": str(error).split("\n")[0] or type(error).__name__}
        raise
    finally:
        sessions[-1] |= {**ending, "ended": _now()}
        _write_about(folder, {**about, "sessions": sessions}, report)
        write_report(folder, report)


def write_report(folder: Path, report: Reporter) -> None:
    """Write ``report.html`` from the run's files."""
    try:
        write_text(folder / REPORT, html(training_page(read_run(folder))))
    except Exception as error:
        report.warn(f"{folder / REPORT} was not written: {error}")


class _Writer:
    """Writes the report when an evaluation is told, unless that would take much of the run's time."""

    def __init__(self, folder: Path, report: Reporter) -> None:
        self.folder, self.report, self.next = folder, report, 0.0

    def listen(self, event: str, numbers: dict[str, Any]) -> None:
        """A listener of the trainer."""
        begin = time.monotonic()
        if event != "eval" or begin < self.next:
            return
        write_report(self.folder, self.report)
        now = time.monotonic()
        self.next = now + COST * (now - begin)


def _about(trainer: Trainer) -> dict[str, Any]:
    device, ranks = trainer.clock.device, trainer.spread.ranks
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        import torch

        name = torch.cuda.get_device_name(device)
    packages = ("torch", "transformers")
    return {
        "eagle3": __version__,
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
        "device": device.type,
        "device_name": name,
        "processes": ranks.world_size,
        "draft_weights": size(trainer.draft),
        "total_steps": trainer.total_steps,
        "budget_seconds": trainer.budget_seconds,
        "data": trainer.facts,
    }


def _samples(trainer: Trainer, settings: Settings, report: Reporter) -> list[dict[str, Any]]:
    """The first training rows, as they are trained on; none where they cannot be shown."""
    rows = range(1, 1 + min(SAMPLES, len(trainer.source.lengths)))
    try:
        shown = show(settings, path=Path(trainer.facts["folder"]), rows=tuple(rows))
    except Exception as error:
        report.warn(f"the report shows no rows: {error}")
        return []
    return [sample_of(row) for row in shown.rows]


def _write_about(folder: Path, about: dict[str, Any], report: Reporter) -> None:
    try:
        write_json(folder / ABOUT, about)
    except Exception as error:
        report.warn(f"{folder / ABOUT} was not written: {error}")


def _now() -> str:
    return datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
