"""Prompts that a target answers itself where the recorded replies are another one's: how many, and how long."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass

from eagle3cli.errors import Eagle3Error
from eagle3cli.pipeline.forecast.machine import Machine
from eagle3cli.pipeline.forecast.models import Shapes
from eagle3cli.pipeline.forecast.ranges import Range
from eagle3cli.pipeline.forecast.rows import Known
from eagle3cli.pipeline.own_replies import rows_within, why_own
from eagle3cli.runtime.units import parse_duration
from eagle3cli.settings.tables import Settings


@dataclass(frozen=True)
class OwnRows:
    """What the run will choose when it has timed the target."""

    rows: Range
    seconds: float
    """The most that the replies take."""
    note: str


def own_rows(settings: Settings, known: Known, machine: Machine, shapes: Shapes | None) -> OwnRows | None:
    """How many prompts the run will keep; None where the recorded replies serve, or where none are named."""
    why: list[str] = []
    with suppress(Eagle3Error):  # of a target that is not here
        why = why_own(settings, planned=True)
    if not why:
        return None
    each: Range | None = None
    if machine.engine == "local" and shapes is not None:
        batch = settings.regenerate.batch_size
        row = known.prompt_tokens + known.reply_tokens
        each = machine.decode_seconds(known.reply_tokens * batch, batch, row, shapes, batch) * (1 / batch)
    fewest = rows_within(settings, each.high if each else None)
    most = rows_within(settings, each.low if each else None)
    rows = Range(min(fewest, known.rows.low), min(most, known.rows.high))
    budget = parse_duration(settings.train.time_budget)
    seconds = max(budget, rows.low * each.high) if each and budget else float("inf")
    note = (
        "regenerate: the target writes its own replies, to as many prompts as it answers in about the time of the "
        f"training; {settings.regenerate.recorded} was recorded with {', '.join(why)}"
    )
    return OwnRows(rows, seconds, note)
