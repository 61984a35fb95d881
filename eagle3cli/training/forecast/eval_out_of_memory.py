"""An evaluation that memory did not suffice for: what it was forecast to take, and what to change first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eagle3cli.backends.capture.memory import target_shape
from eagle3cli.backends.target.hf import read_target_config
from eagle3cli.errors import Eagle3Error
from eagle3cli.models.export import find_draft
from eagle3cli.models.opened import open_draft
from eagle3cli.runtime.out_of_memory import failed_allocation, is_out_of_memory, release
from eagle3cli.runtime.units import size_text
from eagle3cli.settings.tables import Settings
from eagle3cli.training.forecast.inputs import CUDA_CONTEXT, USUAL_SHARE, device_of
from eagle3cli.training.forecast.memory import Forecast, Load, evaluation_forecast, part_lines

SHORTEST = 256


@contextmanager
def explained(settings: Settings, batch_size: int) -> Iterator[None]:
    """Turn an error of memory within the block into one that says what to change."""
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        what = f"memory did not suffice{failed_allocation(error)}"
        release(error)
    else:
        return
    raise too_large(settings, batch_size, what)


def too_large(settings: Settings, batch_size: int, what: str) -> Eagle3Error:
    """The error for an evaluation with these settings."""
    where = f"a batch of {batch_size} rows"
    try:
        found = _forecast(settings, batch_size)
        change = _first_change(settings, batch_size, found.bytes)
    except (MemoryError, RuntimeError, Eagle3Error):
        return Eagle3Error(what, where=where, fix="use a smaller --max-length or fewer --depths")
    device = device_of(settings.target.device)
    told = f"forecast on {device}: {size_text(found.bytes)}, most at {found.peak.name!r}"
    fix = f"use {change}" if change else "use a device with more memory"
    return Eagle3Error("\n".join([what, told, *part_lines(found)]), where=where, fix=fix)


def _forecast(settings: Settings, batch_size: int) -> Forecast:
    raw = read_target_config(settings.target)
    draft = open_draft(find_draft(Path(str(settings.draft.path))), raw, settings.draft.aux_layers).config
    cpu, length = device_of(settings.target.device) == "cpu", settings.data.max_length
    element = 4 if cpu and settings.target.dtype in ("auto", "float32") else 2
    load = Load(
        draft=draft,
        target=target_shape(settings.target),
        online=settings.data.eval_hidden_states_path is None,
        tokens=batch_size * length,
        sequences=batch_size,
        longest=length,
        rows=round(batch_size * length * USUAL_SHARE),
        depths=settings.eval.depths,
        cpu=cpu,
        compute=element,
        states=element,
        tp_size=settings.target.tp_size,
        shared_prefix=True,
        process=0 if cpu else CUDA_CONTEXT,
    )
    return evaluation_forecast(load)


def _first_change(settings: Settings, batch_size: int, needed: int) -> str | None:
    """The first change that makes it clearly less."""
    data, target = settings.data, settings.target
    changes: list[tuple[str, dict[str, object]]] = []
    if settings.data.eval_hidden_states_path is None:
        length = data.max_length
        while (length := length // 2) >= SHORTEST:
            changes.append((f"--max-length {length}", {"data": data.model_copy(update={"max_length": length})}))
    if device_of(target.device) == "cpu" and target.dtype in ("auto", "float32"):
        changes.append(("--dtype bfloat16", {"target": target.model_copy(update={"dtype": "bfloat16"})}))
    if settings.eval.depths > 1:
        changes.append(("--depths 1", {"eval": settings.eval.model_copy(update={"depths": 1})}))
    found = ((flags, _forecast(settings.model_copy(update=update), batch_size).bytes) for flags, update in changes)
    return next((flags for flags, size in found if size <= 0.85 * needed), None)
