"""eagle3 eval: acceptance length of a draft on held-out text, simulated."""

from __future__ import annotations

from eagle3cli.cli.command import Command
from eagle3cli.cli.dry_run import planner
from eagle3cli.console.out import Out
from eagle3cli.settings.tables import Settings


def run(settings: Settings, out: Out) -> int | None:
    """Simulate acceptance on the held-out replies and show it by depth and turn."""
    from eagle3cli.cli.preflight.preflight import preflight

    preflight(COMMAND, settings, out)
    from eagle3cli.backends.target.auto import load_backend
    from eagle3cli.backends.target.group import single_tp_group
    from eagle3cli.cli.local_target import with_local_target
    from eagle3cli.training.eval.measure import measure
    from eagle3cli.training.eval.summary import as_data, as_text, tables
    from eagle3cli.training.forecast.eval_out_of_memory import evaluation_explained

    with single_tp_group(settings.target, load_backend) as works:
        if not works:
            return None
        settings = with_local_target(settings, out)
        with evaluation_explained(settings):
            result = measure(settings, out)
    if not result.replies:
        out.warn("no reply in these rows: nothing was measured")
    for table in tables(result):
        out.table(*table)
    out.next("export", {"draft.path": settings.draft.path})
    out.result(as_data(result), as_text(result))
    return None


COMMAND = Command(
    name="eval",
    summary="Measure a draft's acceptance length on held-out replies, without a server.",
    examples=(
        "eagle3 eval --target-model-path MODEL --draft-model-path runs/train/best --eval-data-path eval.jsonl",
        "eagle3 eval --target-model-path MODEL --draft-model-path runs/train/best --eval-data-path at-0.7.jsonl "
        "--temperature 0.7 --top-p 0.95",
    ),
    fields=("eval.*", "draft.path", "draft.window", "draft.sinks", "target.*", "data.*"),
    run=run,
    loads_torch=True,
    plan=planner("eagle3cli.training.forecast.eval_plan:plan_eval"),
)
