"""What a run of the whole pipeline would do: which stages are done, which come, and what is known of each."""

from __future__ import annotations

from typing import Any

from eagle3cli.backends.target.gguf.folder import find_gguf
from eagle3cli.console.out import Out
from eagle3cli.errors import Eagle3Error, ModelError, UsageError
from eagle3cli.pipeline.engine import Pipeline, StageLedger
from eagle3cli.pipeline.forecast.table import COLUMNS, RunForecast, forecast_run
from eagle3cli.pipeline.stages import Stage, stage_command, stage_settings, with_default_paths
from eagle3cli.runtime.plan import Plan
from eagle3cli.settings.tables import Settings

LATER = "more is known when the stages before it are done"


def plan_run(settings: Settings) -> Plan:
    """Every stage in order: of those that come a forecast, and the plan of its command as far as its inputs are there.

    Raises as the run would for a folder of something else and for stages made with other settings.
    """
    settings = with_default_paths(settings)
    pipeline = Pipeline(settings)
    entries = pipeline.ledger.stages
    target = _target(pipeline.ledger) or settings.target.model_path
    done: list[str] = []
    does: list[str] = []
    numbers: dict[str, Any] = {}
    problems: dict[str, None] = {}
    for stage, is_done in pipeline.planned():
        if is_done:
            done.append(f"{stage.name}, in {entries[stage.name]['seconds']:.0f} s")
            numbers[stage.name] = {"done": True}
            continue
        plan = _plan_of(stage, stage_settings(stage, settings, target), problems)
        details = plan.as_dict() if isinstance(plan, Plan) else {}
        numbers[stage.name] = {**details, "done": False, "known": isinstance(plan, Plan)}
        begun = " (begun)" if stage.name in entries else ""
        does.append(f"{stage.name}{begun}: {_summary(plan)}")
    left = [name for name, stage in numbers.items() if not stage["done"]]
    finished = {name: entries[name]["result"] for name in numbers if name not in left}
    forecast = _forecast(settings.updated("target", model_path=target), left, finished, problems)
    for name in left if forecast else ():
        numbers[name]["forecast"] = forecast.stages[name].numbers() if forecast else None
    return Plan(
        "run",
        reads=(_model(settings),),
        done=tuple(done),
        does=tuple(line for line in does if forecast is None or not line.endswith(f": {LATER}")),
        writes=(str(pipeline.folder),),
        warnings=tuple(problems),
        numbers={
            "stages": numbers,
            "stages_left": left,
            "forecast": forecast.numbers() if forecast else None,
        },
        table=(COLUMNS, *forecast.table()) if forecast else (),
        notes=forecast.notes if forecast else (),
    )


def _forecast(
    settings: Settings, left: list[str], finished: dict[str, dict[str, Any]], problems: dict[str, None]
) -> RunForecast | None:
    """The forecast of the stages that are left; None, with the reason among the problems, where there is none."""
    if not left:
        return None
    try:
        forecast = forecast_run(settings, left, finished, Out())
    except Eagle3Error as error:
        if settings.run.calibrate:  # who asks for it wants to know that there is none
            raise
        problems[str(error)] = None
        return None
    problems |= dict.fromkeys(forecast.warnings)
    return forecast


def _target(ledger: StageLedger) -> str | None:
    """The target's folder where an earlier run has settled it."""
    result = ledger.stages.get("target", {}).get("result")
    return str(result["target"]) if result else None


def _model(settings: Settings) -> str:
    path = find_gguf(settings.target.model_path)
    return f"target {settings.target.model_path}" + (f" ({path.name}, converted first)" if path else "")


def _plan_of(stage: Stage, settings: Settings, problems: dict[str, None]) -> Plan | str:
    """The plan of a stage's command, or why there is none yet; ``problems`` of the target are kept, each once."""
    if stage.name in ("target", "export", "bench"):
        return f"writes {stage.output(settings)}"
    try:
        plan: Plan = stage_command(stage.name).plan(settings)
    except UsageError as error:
        return f"as far as is known now: {error}"
    except Eagle3Error as error:
        if isinstance(error, ModelError) and stage.name != "eval":  # its draft is made by a stage before it
            problems[str(error)] = None
        return LATER
    return plan


def _summary(plan: Plan | str) -> str:
    if isinstance(plan, str):
        return plan
    return "; ".join([*plan.done, *plan.does[:2], *(f"writes {line}" for line in plan.writes)])
