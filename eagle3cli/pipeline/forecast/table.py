"""The forecast of a run as one table, and what decides its ranges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from eagle3cli.cli.local_target import planned_target
from eagle3cli.errors import Eagle3Error, UsageError
from eagle3cli.pipeline.forecast.calibration import Calibration, find, save
from eagle3cli.pipeline.forecast.chain import Chain, follow
from eagle3cli.pipeline.forecast.machine import GPU_MEMORY, Machine, conditions_of, machine_of
from eagle3cli.pipeline.forecast.models import Shapes, find_shapes
from eagle3cli.pipeline.forecast.own import own_rows
from eagle3cli.pipeline.forecast.ranges import Range, counts_text, range_text
from eagle3cli.pipeline.forecast.rows import Known, known_rows
from eagle3cli.pipeline.forecast.stages import Forecaster, StageForecast
from eagle3cli.pipeline.forecast.training import split_lines
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.units import size_text, time_text
from eagle3cli.settings.data import PrepareSettings
from eagle3cli.settings.tables import Settings

COLUMNS = ("stage", "rows", "tokens", "disk", "memory", "minutes")
WITHOUT = {
    "target": ("rows", "tokens", "memory"),
    "prepare": ("tokens", "memory"),
    "merge": ("tokens", "memory"),
    "cache": ("memory",),
    "export": ("rows", "tokens", "memory"),
}
"""What a stage has none of: a dash, not a number that nobody knows."""


@dataclass(frozen=True)
class RunForecast:
    """What the stages that are left take."""

    stages: Mapping[str, StageForecast]
    machine: Machine
    shapes: Shapes | None
    notes: tuple[str, ...]
    """What decides the ranges, a line each."""
    warnings: tuple[str, ...]

    def table(self) -> list[tuple[str, ...]]:
        """The rows of the table, with the sums of what adds up."""
        rows = [(name, *_cells(name, stage)) for name, stage in self.stages.items()]
        if len(rows) > 1:
            rows.append(("together", "", "", _sizes(self.sum_of("disk")), _peak(self.stages), _minutes(self.time())))
        return rows

    def sum_of(self, name: str) -> Range:
        """Of all stages for which it is known."""
        total = Range(0, 0)
        for stage in self.stages.values():
            total += getattr(stage, name) or 0.0
        return total

    def time(self) -> Range:
        """Seconds of all stages for which they are known."""
        return self.sum_of("seconds")

    def numbers(self) -> dict[str, Any]:
        """For JSON, beside the stages' own."""
        return {
            "device": self.machine.name,
            "sizes_from": self.shapes and self.shapes.source,
            "disk_bytes": self.sum_of("disk").numbers(),
            "minutes": (self.time() * (1 / 60)).numbers(),
            "ranges_from": list(self.notes),
            "calibrated": self.machine.calibration and self.machine.calibration.made,
        }


def forecast_run(
    settings: Settings, left: Sequence[str], finished: Mapping[str, dict[str, Any]], report: Reporter
) -> RunForecast:
    """What the stages that are ``left`` will take; ``finished`` are the results of those that are done.

    With ``run.calibrate`` this machine is timed first; raises as :func:`calibrate` does.
    """
    settings = _with_length(settings)
    shapes = find_shapes(settings)
    machine = machine_of(settings)
    known = known_rows(_prepared(settings) if "prepare" in finished else settings)
    known_shapes = None if isinstance(shapes, str) else shapes
    chain = follow(settings, known, finished)
    if settings.run.calibrate:
        _calibrate(machine, shapes, chain, report)
    calibration, how = _calibration(machine, known_shapes)
    machine = replace(machine, calibration=calibration)
    own = None if "regenerate" in finished else own_rows(settings, known, machine, known_shapes)
    if own is not None and "prepare" not in finished:
        known = replace(known, rows=own.rows)
        chain = follow(settings, known, finished)
    forecaster = Forecaster(machine.settings, known, chain, known_shapes, machine, own.seconds if own else None)
    stages = {name: forecaster.of(name) for name in left}
    sizes = f"sizes: {shapes if isinstance(shapes, str) else shapes.source}"
    splits: list[str] = []
    if known_shapes is not None and "train" in left:
        splits = split_lines(machine, known_shapes, chain.trained.high, chain.row.high, chain.loss.high)
    replies = (own.note,) if own else _recorded_notes(settings)
    times = _time_notes(settings, machine)
    rows_told = _row_notes(known, finished)
    notes = (f"machine: {machine.name}", sizes, *rows_told, *times, *replies, how, *splits)
    warnings = (*_too_long(settings, known), *_warnings(stages, machine))
    forecast = RunForecast(stages, machine, known_shapes, notes, warnings)
    return replace(forecast, notes=(f"together: {range_text(forecast.time(), time_text)}", *notes))


def _with_length(settings: Settings) -> Settings:
    """The settings with the number for ``data.max_length = "auto"``, where the rows and the tokenizer are there."""
    if settings.data.max_length != "auto":
        return settings
    with suppress(Eagle3Error), planned_target(settings) as local:
        return settings.updated("data", max_length=local.data.max_length)
    return settings


def _calibrate(machine: Machine, shapes: Shapes | str, chain: Chain, report: Reporter) -> None:
    """Time this machine and keep what came of it."""
    from eagle3cli.pipeline.forecast.calibrate import calibrate  # a plan without it needs no trainer

    if isinstance(shapes, str):
        raise UsageError(
            "cannot-calibrate", f"nothing to time: {shapes}", where="--calibrate", fix="fetch the target first"
        )
    save(conditions_of(machine, shapes), calibrate(machine, shapes, chain.row, chain.loss, report))


def _calibration(machine: Machine, shapes: Shapes | None) -> tuple[Calibration | None, str]:
    """What was timed of this machine and these models, and what to tell of it."""
    if machine.is_assumed or shapes is None or not shapes.is_read:
        return None, "calibration: none; it is made where the run will be, with the target there (--calibrate)"
    return find(conditions_of(machine, shapes))


def _prepared(settings: Settings) -> Settings:
    """The settings with prepare's result as the source of the rows: they are there to be looked at."""
    path = settings.regenerate.input_path
    plain = PrepareSettings(source=(str(path),), output_path=settings.run.output_dir / "forecast")
    return settings.model_copy(update={"prepare": plain})


def _row_notes(known: Known, finished: Mapping[str, dict[str, Any]]) -> tuple[str, ...]:
    if "cache" in finished:
        return ("rows and tokens: counted, they are cached",)
    return known.notes


def _time_notes(settings: Settings, machine: Machine) -> list[str]:
    by = "the roofline's share of the peak down to a part of it" if machine.device == "cuda" else "its timed product"
    servers = "SGLang" if machine.engine == "started" else "the servers" if machine.engine == "running" else ""
    if machine.calibration:
        by = f"passes that were timed here with these models; what was not, by {by}"
    else:
        by += "; not measured with these models, so the true ones may lie near either end"
    notes = [
        f"minutes: by {by}; downloads are not in them",
        f"replies and benchmark: by {servers or 'transformers in this process'}",
        f"long rows: cut at {settings.data.row_limit:,} tokens (data.max_length); a batch of them takes most memory",
    ]
    if settings.data.max_length == "auto":
        notes[-1] += "; auto chooses another number once the rows are there"
    return notes


def _recorded_notes(settings: Settings) -> tuple[str, ...]:
    if not settings.regenerate.recorded:
        return ()
    return ("regenerate: next to no time where the recorded replies match, all of it where they do not",)


def _too_long(settings: Settings, known: Known) -> tuple[str, ...]:
    """Where the prompts leave no room for a reply."""
    longest = settings.data.row_limit
    if known.prompt_tokens.low < longest:
        return ()
    prompts = f"{known.prompt_tokens.low:,.0f} tokens and more"
    return (f"prompts of {prompts} leave no room for replies in {longest:,} (data.max_length): nothing to train on",)


def _warnings(stages: Mapping[str, StageForecast], machine: Machine) -> tuple[str, ...]:
    room = machine.memory or (GPU_MEMORY if machine.device == "cuda" else None)
    if room is None:
        return ()
    return tuple(
        f"{name}: at least {size_text(round(stage.memory.low))} of memory, {size_text(room)} there"
        for name, stage in stages.items()
        if stage.memory and stage.memory.low > room
    )


def _cells(name: str, stage: StageForecast) -> tuple[str, ...]:
    cells = {
        "rows": counts_text(stage.rows),
        "tokens": counts_text(stage.tokens),
        "disk": _sizes(stage.disk),
        "memory": _sizes(stage.memory),
        "minutes": _minutes(stage.seconds),
    }
    return tuple("-" if column in WITHOUT.get(name, ()) else text for column, text in cells.items())


def _sizes(value: Range | None) -> str:
    if value is not None and value.low < 1 <= value.high:
        return f"up to {size_text(round(value.high))}"
    return range_text(value, lambda size: size_text(round(size)))


def _peak(stages: Mapping[str, StageForecast]) -> str:
    known = [stage.memory for stage in stages.values() if stage.memory]
    if not known:
        return "not known"
    return _sizes(Range(max(each.low for each in known), max(each.high for each in known)))


def _minutes(seconds: Range | None) -> str:
    if seconds is not None and seconds.low < 60 <= seconds.high:
        return f"up to {_minute_text(seconds.high / 60)}"
    return range_text(seconds, lambda each: _minute_text(each / 60))


def _minute_text(minutes: float) -> str:
    if minutes < 1:
        return "under 1"
    return f"{minutes:.0f}" if minutes < 100 else f"{float(f'{minutes:.2g}'):,.0f}"
