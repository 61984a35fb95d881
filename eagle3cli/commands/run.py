"""eagle3 run: the whole chain from one settings file."""

from __future__ import annotations

from eagle3cli.cli.command import Command
from eagle3cli.cli.dry_run import planner
from eagle3cli.console.out import Out
from eagle3cli.errors import UsageError
from eagle3cli.settings.tables import Settings

TRAIN = ("time_budget", "report_to", "tracker_project", "tracker_name")
TARGET = ("model_path", "adapter", "threads")


def run(settings: Settings, out: Out) -> int | None:
    """Run what is not done yet, then show and write the report."""
    from eagle3cli.cli.preflight.preflight import preflight

    preflight(COMMAND, settings, out)
    from eagle3cli.pipeline.engine import Pipeline
    from eagle3cli.pipeline.overview import overview
    from eagle3cli.pipeline.report import write_report
    from eagle3cli.pipeline.stages import with_default_paths
    from eagle3cli.runtime.stop import catch_stop
    from eagle3cli.training.trackers.tracker import check_trackers

    if settings.run.list:
        overview(out)
        return None
    if settings.run.calibrate:
        fix = "add --dry-run, or: eagle3 plan RECIPE --calibrate"
        raise UsageError(
            "conflicting-options", "a calibration is part of a plan, not of a run", where="--calibrate", fix=fix
        )
    if not settings.target.model_path:
        fix = "name a recipe: eagle3 run quickstart (all: eagle3 run --list), or a settings file of your own"
        raise UsageError("missing-target", "no recipe, and no target in the settings", where="RECIPE", fix=fix)
    check_trackers(settings.train.report_to)
    settings = with_default_paths(settings)
    with catch_stop(out) as stop:
        pipeline = Pipeline(settings)
        pipeline.run(out, stop)
    entries = pipeline.ledger.stages
    missing = pipeline.unfinished()
    done = {name: entry["seconds"] for name, entry in entries.items() if name not in missing}
    if missing:
        text = f"done: {', '.join(done)}\nleft: {', '.join(missing)}; the same command without --to and --only goes on"
        out.result({"stages": done, "left": missing}, text)
        return None
    report, page = write_report(settings, entries)
    for section in page.on_terminal:
        out.table(section.title, section.columns, section.rows)
    place = settings.run.output_dir / "report.html"
    out.result(report, f"{page.summary}\nreport: {place} (also .md and .json)\ndraft: {report['draft']}")
    return None


COMMAND = Command(
    name="run",
    summary="Run the whole chain, from prompts to a measured acceptance length, from one settings file.",
    examples=(
        "eagle3 run --list",
        "eagle3 run my_recipe.toml --time-budget 40m",
        "eagle3 run my_recipe.toml --from train",
        "eagle3 run quickstart",
    ),
    fields=(
        "run.*",
        *(f"train.{name}" for name in TRAIN),
        "prepare.sample_size",
        "data.chat_template",
        *(f"target.{name}" for name in TARGET),
    ),
    recipe=True,
    run=run,
    plan=planner("eagle3cli.pipeline.plan:plan_run", local=False),
)
