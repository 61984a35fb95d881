"""eagle3 run: the whole chain from one settings file."""

from __future__ import annotations

from typing import TYPE_CHECKING

from eagle3cli.commands.command import Command

if TYPE_CHECKING:
    from eagle3cli.console.out import Out
    from eagle3cli.settings.tables import Settings

TRAIN = ("time_budget", "report_to", "tracker_project", "tracker_name")
TARGET = ("model_path", "threads")


def run(settings: Settings, out: Out) -> int | None:
    """Run what is not done yet, then show and write the report."""
    from eagle3cli.chain.engine import run_stages
    from eagle3cli.chain.report import numbers, page
    from eagle3cli.chain.stages import placed
    from eagle3cli.console.report import html, markdown
    from eagle3cli.runtime.files import write_json, write_text
    from eagle3cli.runtime.stop import catch_stop
    from eagle3cli.settings.toml import to_toml
    from eagle3cli.training.trackers.registry import check_trackers

    check_trackers(settings.train.report_to)
    settings = placed(settings)
    folder = settings.run.output_dir
    with catch_stop(out) as stop:
        ledger = run_stages(settings, out, stop)
    report = numbers(settings, ledger.stages)
    shown = page(report, settings)
    write_text(folder / "settings.toml", to_toml(settings))
    write_json(folder / "report.json", report)
    write_text(folder / "report.md", markdown(shown))
    write_text(folder / "report.html", html(shown))
    for section in shown.sections:
        if section.rows and section.on_terminal:
            out.table(section.title, section.columns, section.rows)
    text = f"{shown.summary}\nreport: {folder / 'report.html'} (also .md and .json)\ndraft: {report['draft']}"
    out.result(report, text)
    return None


COMMAND = Command(
    name="run",
    summary="Run the whole chain, from prompts to a measured acceptance length, from one settings file.",
    examples=("eagle3 run quickstart", "eagle3 run my_recipe.toml --time-budget 40m"),
    fields=(
        "run.*",
        *(f"train.{name}" for name in TRAIN),
        "prepare.sample_size",
        *(f"target.{name}" for name in TARGET),
    ),
    recipe=True,
    run=run,
)
