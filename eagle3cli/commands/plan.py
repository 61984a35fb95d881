"""eagle3 plan: what a command would do and cost; ``eagle3 plan X`` is ``eagle3 X --dry-run``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from eagle3cli.cli.command import Command
from eagle3cli.cli.dry_run import show
from eagle3cli.commands import bench, cache, hidden_states, merge, prepare, regenerate, run, train
from eagle3cli.commands import eval as evaluate
from eagle3cli.console.out import Out
from eagle3cli.runtime.plan import Plan
from eagle3cli.settings.tables import Settings

PLANNED = (prepare, regenerate, merge, cache, hidden_states, train, evaluate, bench, run)


def show_instead(plan: Callable[[Settings], Plan]) -> Callable[[Settings, Out], int]:
    """A command's plan in place of its work."""
    return lambda settings, out: show(plan, settings, out)


def action(command: Command) -> Command:
    """``eagle3 plan COMMAND``."""
    assert command.plan is not None
    examples = (f"eagle3 plan {command.examples[0].removeprefix('eagle3 ')}",)
    summary = f"Say what eagle3 {command.name} would read, do and write."
    return replace(command, summary=summary, examples=examples, run=show_instead(command.plan), actions=(), plan=None)


COMMAND = Command(
    name="plan",
    summary="Say what training (or the command or recipe named next) would cost, and do nothing: rows, steps, disk, "
    "memory of each device part by part, what to change where that does not fit, and the line to launch it with.",
    examples=(
        "eagle3 plan --target-model-path MODEL --train-data-path cache/dataset/train.jsonl --batch-size 8",
        "eagle3 plan hidden-states --model-path MODEL --data-path cache/dataset/train.jsonl",
        "eagle3 plan quickstart",
    ),
    fields=train.COMMAND.fields,
    rarely=(*train.COMMAND.rarely, "--eval-data-path", "--mode", "--output-dir", "--num-epochs", "--learning-rate"),
    run=action(train.COMMAND).run,
    actions=tuple(action(module.COMMAND) for module in PLANNED),
)
