"""How a plan is shown, by ``--dry-run`` and by ``eagle3 plan``."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from eagle3cli.console.out import Out
    from eagle3cli.runtime.plan import Plan
    from eagle3cli.settings.tables import Settings


def planner(where: str, *, looks: bool = True, named: bool = False) -> Callable[[Settings], Plan]:
    """The function ``module:name`` that plans, imported when it is called.

    It gets the settings with the target where it lies, or as they are unless it ``looks`` there; with ``named`` both.
    """

    def plan(settings: Settings) -> Plan:
        from eagle3cli.cli.local_target import looked_at

        module, _, name = where.partition(":")
        make: Callable[..., Plan] = getattr(importlib.import_module(module), name)
        if not looks:
            return make(settings)
        with looked_at(settings) as looked:
            return make(looked, settings) if named else make(looked)

    return plan


def show(plan: Callable[[Settings], Plan], settings: Settings, out: Out) -> int:
    """Make the plan without any network and show it; returns exit code 0, also where it warns."""
    from eagle3cli.runtime.hub import go_offline

    go_offline()
    found = plan(settings)
    for warning in found.warnings:
        out.warn(warning)
    out.result(found.as_dict(), "\n".join(found.lines()))
    return 0
