"""A run that memory did not suffice for: at which step, what it was forecast to take, and what to change first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from eagle3cli.errors import Eagle3Error
from eagle3cli.runtime.out_of_memory import failed_allocation, is_out_of_memory, release
from eagle3cli.runtime.units import size_text
from eagle3cli.settings.tables import Settings
from eagle3cli.training.forecast.inputs import device_of, inspect_inputs
from eagle3cli.training.forecast.memory import forecast
from eagle3cli.training.forecast.phases import Forecast, part_lines
from eagle3cli.training.forecast.plan import planned_draft
from eagle3cli.training.forecast.proposals import first_change
from eagle3cli.training.forecast.workload import training_workload

CLEARLY_LESS = 0.85
"""Of what a run was forecast to take: what a change must come below, where it is not known what would have fit."""
RESUME = "then run the same command again: it goes on from the newest checkpoint"


@contextmanager
def explained(
    place: Callable[[], str], advice: Callable[[], tuple[str, Forecast, str]], fallback: str
) -> Iterator[None]:
    """Turn an error of memory within the block into one that says what to change.

    ``place`` says where it was, ``advice`` gives what was forecast, the forecast and what to change; ``fallback`` is
    told where there is no memory left for that either.
    """
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        message = f"memory did not suffice{failed_allocation(error)}"
        where = place()
        release(error)
    else:
        return
    try:
        subject, memory, fix = advice()
        peak = f"{subject}: {size_text(memory.peak_bytes)}, most at {memory.peak.name!r}"
        explanation = Eagle3Error(
            "out-of-memory", "\n".join([message, peak, *part_lines(memory)]), where=where, fix=fix
        )
    except (MemoryError, RuntimeError, Eagle3Error):
        explanation = Eagle3Error("out-of-memory", message, where=where, fix=fallback)
    raise explanation


def training_explained(
    settings: Settings, world_size: int, place: Callable[[], str], *, built: bool
) -> AbstractContextManager[None]:
    """:func:`explained` for a training run of ``world_size`` processes; ``built``: its initial weights are there, so
    what these took is no matter."""

    def advice() -> tuple[str, Forecast, str]:
        inputs = inspect_inputs(settings, planned_draft(settings))
        memory = forecast(training_workload(settings, inputs, world_size, resumes=built))
        limit = round(CLEARLY_LESS * memory.peak_bytes)
        available = min(inputs.available or memory.peak_bytes, limit)
        change = first_change(settings, inputs, world_size, available, resumes=built)
        fix = f"use {change}, {RESUME}" if change else "use a device with more memory, or more of them"
        return f"forecast for each process on {device_of(settings.target.device)}", memory, fix

    counted = "--draft-micro-batch-size" if settings.train.max_tokens_per_gpu is None else "--max-tokens-per-gpu"
    return explained(place, advice, f"use a smaller {counted}, {RESUME}")
