"""What a run of the whole chain would do: which stages are done, which come, and what is known of each."""

from __future__ import annotations

import importlib
from typing import Any

from eagle3cli.backends.target.gguf import gguf_of
from eagle3cli.errors import Eagle3Error, ModelError, UsageError
from eagle3cli.pipeline.engine import Ledger, standing
from eagle3cli.pipeline.stages import Stage, for_stage, placed
from eagle3cli.runtime.plan import Plan
from eagle3cli.settings.tables import Settings


def plan_run(settings: Settings) -> Plan:
    """Every stage in order; of those that come, the plan of its command as far as its inputs are there.

    Raises as the run would for a folder of something else and for stages made with other settings.
    """
    settings = placed(settings)
    folder = settings.run.output_dir
    ledger = Ledger.open(folder)
    done, does, numbers, wrong = list[str](), list[str](), dict[str, Any](), dict[str, None]()
    target = _target(ledger) or settings.target.model_path
    for stage, is_done in standing(settings, ledger):
        if is_done:
            done.append(f"{stage.name}, in {ledger.stages[stage.name]['seconds']:.0f} s")
            numbers[stage.name] = {"done": True}
            continue
        found = _plan_of(stage, for_stage(stage, settings, target), wrong)
        known = isinstance(found, Plan)
        numbers[stage.name] = {"done": False, "known": known, **(found.as_dict() if isinstance(found, Plan) else {})}
        begun = " (begun)" if stage.name in ledger.stages else ""
        does.append(f"{stage.name}{begun}: {_summary(found)}")
    return Plan(
        "run",
        reads=(_model(settings),),
        done=tuple(done),
        does=tuple(does),
        writes=(str(folder),),
        warnings=tuple(wrong),
        numbers={"stages": numbers, "stages_left": [name for name, found in numbers.items() if not found["done"]]},
    )


def _target(ledger: Ledger) -> str | None:
    """The target's folder where an earlier run has settled it."""
    result = ledger.stages.get("target", {}).get("result")
    return str(result["target"]) if result else None


def _model(settings: Settings) -> str:
    path = gguf_of(settings.target.model_path)
    return f"target {settings.target.model_path}" + (f" ({path.name}, converted first)" if path else "")


def _plan_of(stage: Stage, settings: Settings, wrong: dict[str, None]) -> Plan | str:
    """The plan of a stage's command, or why there is none yet; what is ``wrong`` with the target is kept, once."""
    if stage.name in ("target", "export", "bench"):
        return f"writes {stage.output(settings)}"
    module = importlib.import_module(f"eagle3cli.commands.{stage.name.replace('-', '_')}")
    try:
        found: Plan = module.COMMAND.plan(settings)
    except UsageError as error:
        return f"as far as is known now: {error}"
    except Eagle3Error as error:
        if isinstance(error, ModelError) and stage.name != "eval":  # its draft is made by a stage before it
            wrong[str(error)] = None
        return "more is known when the stages before it are done"
    return found


def _summary(found: Plan | str) -> str:
    if isinstance(found, str):
        return found
    return "; ".join([*found.does[:2], *(f"writes {line}" for line in found.writes)])
