"""An evaluation that memory did not suffice for: what it was forecast to take, and what to change first."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from eagle3cli.backends.capture.memory import target_shape
from eagle3cli.backends.target.hf import read_target_config
from eagle3cli.models.folders import find_draft
from eagle3cli.models.inference import load_for_inference
from eagle3cli.settings.tables import Settings
from eagle3cli.training.eval.measure import rows_at_once
from eagle3cli.training.forecast.inputs import CUDA_CONTEXT, USUAL_SHARE, device_of
from eagle3cli.training.forecast.memory import evaluation_forecast
from eagle3cli.training.forecast.out_of_memory import CLEARLY_LESS, explained
from eagle3cli.training.forecast.phases import Forecast
from eagle3cli.training.forecast.proposals import shorter_lengths
from eagle3cli.training.forecast.sizes import Workload

SHORTEST = 256


def evaluation_explained(settings: Settings) -> AbstractContextManager[None]:
    """:func:`~eagle3cli.training.forecast.out_of_memory.explained` for an evaluation with these settings."""

    def advice() -> tuple[str, Forecast, str]:
        memory = _forecast(settings)
        limit = CLEARLY_LESS * memory.peak_bytes
        smaller = (flags for flags, changed in _changes(settings) if _forecast(changed).peak_bytes <= limit)
        change = next(smaller, None)
        fix = f"use {change}" if change else "use a device with more memory"
        return f"forecast on {device_of(settings.target.device)}", memory, fix

    place = f"a batch of {rows_at_once(settings.data.row_limit)} rows"
    return explained(lambda: place, advice, "use a smaller --max-length or fewer --depths")


def _forecast(settings: Settings) -> Forecast:
    raw = read_target_config(settings.target)
    draft = load_for_inference(find_draft(Path(str(settings.draft.path))), raw, settings.draft.aux_layers).config
    cpu = device_of(settings.target.device) == "cpu"
    length = settings.data.row_limit
    batch_size = rows_at_once(length)
    element = 4 if _in_float32(settings) else 2
    work = Workload(
        draft=draft,
        target=target_shape(settings.target),
        online=settings.data.eval_hidden_states_path is None,
        tokens=batch_size * length,
        sequences=batch_size,
        longest_sequence=length,
        positions=round(batch_size * length * USUAL_SHARE),
        ttt_steps=settings.eval.depths,
        cpu=cpu,
        compute_bytes=element,
        state_bytes=element,
        tp_size=settings.target.tp_size,
        shared_prefix=True,
        process_bytes=0 if cpu else CUDA_CONTEXT,
    )
    return evaluation_forecast(work)


def _changes(settings: Settings) -> Iterator[tuple[str, Settings]]:
    if settings.data.eval_hidden_states_path is None:
        for length in shorter_lengths(settings, SHORTEST):
            yield f"--max-length {length}", settings.updated("data", max_length=length)
    if _in_float32(settings):
        yield "--dtype bfloat16", settings.updated("target", dtype="bfloat16")
    if settings.eval.depths > 1:
        yield "--depths 1", settings.updated("eval", depths=1)


def _in_float32(settings: Settings) -> bool:
    target = settings.target
    return device_of(target.device) == "cpu" and target.dtype in ("auto", "float32")
