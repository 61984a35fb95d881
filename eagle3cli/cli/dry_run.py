"""How a plan is shown, by ``--dry-run`` and by ``eagle3 plan``."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from eagle3cli.console.out import Out
from eagle3cli.runtime.plan import Plan
from eagle3cli.settings.tables import Settings


def planner(path: str, *, local: bool = True, original: bool = False) -> Callable[[Settings], Plan]:
    """The function ``module:name`` that plans, imported when it is called.

    It gets the settings with the target where it lies (``local``), else as they are; with ``original`` both.
    """

    def plan(settings: Settings) -> Plan:
        from eagle3cli.cli.local_target import planned_target

        module, _, name = path.partition(":")
        make_plan: Callable[..., Plan] = getattr(importlib.import_module(module), name)
        if not local:
            return make_plan(settings)
        with planned_target(settings) as with_folder:
            return make_plan(with_folder, settings) if original else make_plan(with_folder)

    return plan


def show(make_plan: Callable[[Settings], Plan], settings: Settings, out: Out) -> int:
    """Make the plan without any network and show it; returns exit code 0, also where it warns."""
    from eagle3cli.runtime.hub import go_offline

    go_offline()
    plan = make_plan(settings)
    for warning in plan.warnings:
        out.warn(warning)
    out.result(plan.as_dict(), "\n".join(plan.lines()))
    return 0
