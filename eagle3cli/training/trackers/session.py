"""A training run's trackers: opened before its first step, fed by its events, closed after its last."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from queue import Empty
from typing import Any

from eagle3cli.errors import Stopped
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.secret import hidden
from eagle3cli.settings.tables import Settings
from eagle3cli.training.history import read_history
from eagle3cli.training.trackers.feed import Feed
from eagle3cli.training.trackers.tracker import TrackedRun, selected_trackers, service
from eagle3cli.training.trainer import Trainer

PATIENCE = 60.0
"""Seconds that all trackers together may take to send what is left."""
TABLES = ("target", "draft", "data", "train")
"""The settings that trackers are told."""


@contextmanager
def tracked(trainer: Trainer, settings: Settings) -> Iterator[None]:
    """Within the block the trackers of ``train.report_to`` get what the trainer's listeners get, and what they lack."""
    train = settings.train
    report = trainer.report
    feeds = [_feed(name, settings) for name in selected_trackers(train.report_to)]
    if not feeds:
        yield
        return

    def listen(event: str, numbers: dict[str, Any]) -> None:
        for feed in feeds:
            feed.put(event, numbers)
        _report(feeds, report)

    failed = False
    with Path(os.devnull).open("w") as null, redirect_stdout(null):  # trackers talk; our stdout is for data
        for feed in feeds:
            feed.start()
        for row in read_history(train.output_dir):
            listen(row["event"], row)
        trainer.listeners = [*trainer.listeners, listen]
        try:
            yield
        except BaseException as error:
            failed = not isinstance(error, Stopped | KeyboardInterrupt)
            raise
        finally:
            end = time.monotonic() + PATIENCE
            for feed in feeds:
                feed.close(failed=failed, patience=max(0.1, end - time.monotonic()))
            _report(feeds, report)


def _feed(name: str, settings: Settings) -> Feed:
    train = settings.train
    run = TrackedRun(
        folder=train.output_dir / "trackers" / name,
        project=train.tracker_project,
        name=train.tracker_name or run_name(train.output_dir),
        config=tracked_settings(settings),
    )
    return Feed(name, service(name).start, run)


def run_name(folder: Path) -> str:
    """A run's name where none is given: the last parts of its folder, ``runs/quickstart/train`` is quickstart-train."""
    return "-".join(part for part in folder.resolve().parts[-2:] if part not in ("runs", "/"))


def tracked_settings(settings: Settings) -> dict[str, str | int | float | bool]:
    """The settings that are not empty, as ``table.key``."""
    config: dict[str, str | int | float | bool] = {}
    for table in TABLES:
        for key, value in getattr(settings, table).model_dump(mode="json").items():
            if value is not None and value != []:
                config[f"{table}.{key}"] = value if isinstance(value, bool | int | float) else hidden(str(value))
    return config


def _report(feeds: list[Feed], report: Reporter) -> None:
    """Say what the trackers have to say; one that broke is left out from now on."""
    for feed in list(feeds):
        while True:
            try:
                report.info(feed.messages.get_nowait())
            except Empty:
                break
        if feed.problem is not None:
            fix = "the numbers are in metrics.jsonl, and the same command sends them when it works"
            report.warn(f"{feed.name} is left out: {feed.problem}; {fix}")
            feeds.remove(feed)
