"""``metrics.jsonl`` of a run: one line per logged step and per evaluation, readable while the run goes on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from eagle3cli.runtime.files import append, disk_error, write_text
from eagle3cli.runtime.report import Reporter

HISTORY = "metrics.jsonl"
EVENTS = ("start", "step", "eval")
"""``start``: the draft before its first step, by an evaluation and by the loss of the first step's rows."""


def read_history(run: Path) -> list[dict[str, Any]]:
    """All whole lines; a line that a kill cut off, or that is no event, is left out."""
    path = run / HISTORY
    return parse_events(path.read_text(encoding="utf-8", errors="replace")) if path.is_file() else []


def parse_events(text: str) -> list[dict[str, Any]]:
    """The events among the lines of a history."""
    return [row for row in json_objects(text) if row.get("event") in EVENTS and isinstance(row.get("step"), int)]


def json_objects(text: str) -> Iterator[dict[str, Any]]:
    """The JSON objects among the lines of a text; all else is left out."""
    for line in text.split("\n"):
        with suppress(ValueError, RecursionError):
            value = json.loads(line)
            if isinstance(value, dict):
                yield value


def history_writer(run: Path, from_step: int, report: Reporter) -> Callable[[str, dict[str, Any]], None]:
    """A listener that appends to the run's history; lines after ``from_step`` (of a run that died) are dropped.

    A finished run that is started again is measured again; the history has that already. Lines that a full disk does
    not take wait for the next ones.
    """
    kept = [row for row in read_history(run) if row["step"] <= from_step]
    write_text(run / HISTORY, "".join(json.dumps(row) + "\n" for row in kept))
    written = {(row["event"], row["step"]) for row in kept}
    pending: list[str] = []

    def listen(event: str, numbers: dict[str, Any]) -> None:
        if (event, numbers["step"]) in written:
            return
        written.add((event, numbers["step"]))
        pending.append(json.dumps({"event": event, **numbers}) + "\n")
        try:
            append(run / HISTORY, "".join(pending))
        except OSError as error:
            if len(pending) == 1:
                report.warn(f"{disk_error(error, run / HISTORY)}; the run goes on, its history waits")
        else:
            pending.clear()

    return listen
