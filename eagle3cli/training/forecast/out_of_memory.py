"""A run that memory did not suffice for: at which step, what it was forecast to take, and what to change first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from eagle3cli.errors import Eagle3Error
from eagle3cli.runtime.out_of_memory import failed_allocation, is_out_of_memory, release
from eagle3cli.runtime.units import size_text
from eagle3cli.settings.tables import Settings
from eagle3cli.training.forecast.inputs import Known, device_of, look
from eagle3cli.training.forecast.memory import forecast, part_lines
from eagle3cli.training.forecast.plan import planned_draft
from eagle3cli.training.forecast.proposals import first_change
from eagle3cli.training.forecast.workload import load_of

CLEARLY_LESS = 0.85
"""Of what a run was forecast to take: what a change must come below, where it is not known what would have fit."""


@contextmanager
def explained(settings: Settings, ranks: int, place: Callable[[], str]) -> Iterator[None]:
    """Turn an error of memory within the block into one that says what to change; ``place`` says where it was."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        what, where = f"memory did not suffice{failed_allocation(error)}", place()
        release(error)
    else:
        return
    raise too_large(settings, ranks, what, where)


def too_large(settings: Settings, ranks: int, what: str, where: str) -> Eagle3Error:
    """The error for a run of these settings; without a forecast where there is no memory left for that either."""
    again = "then run the same command again: it goes on from the newest checkpoint"
    try:
        known = look(settings, planned_draft(settings))
        found = forecast(load_of(settings, known, ranks))
        change = first_change(settings, known, ranks, _room(known, found.bytes))
    except (MemoryError, RuntimeError, Eagle3Error):
        return Eagle3Error(what, where=where, fix=f"use a smaller --draft-micro-batch-size, {again}")
    device = device_of(settings.target.device)
    told = f"forecast for each process on {device}: {size_text(found.bytes)}, most at {found.peak.name!r}"
    fix = f"use {change}, {again}" if change else "use a device with more memory, or more of them"
    return Eagle3Error("\n".join([what, told, *part_lines(found)]), where=where, fix=fix)


def _room(known: Known, needed: int) -> int:
    """What a change has to fit into: what is there, and clearly less than what was too much."""
    return min(known.available or needed, round(CLEARLY_LESS * needed))
