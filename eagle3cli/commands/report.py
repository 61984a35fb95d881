"""eagle3 report: the report of a run, or several runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from eagle3cli.cli.command import Command
from eagle3cli.console.out import Out
from eagle3cli.settings.tables import Settings

if TYPE_CHECKING:
    from eagle3cli.console.report import Page


def run(settings: Settings, out: Out) -> int | None:
    """Write the page, and show its tables."""
    from eagle3cli.cli.preflight.preflight import preflight

    preflight(COMMAND, settings, out)
    from eagle3cli.pipeline.pages import compared_run, run_page
    from eagle3cli.runs.compare import comparison_page, distinct_names
    from eagle3cli.runs.find import find_run, newest_run

    options = settings.report
    runs = [find_run(path) for path in options.runs] or [newest_run()]
    place = options.output_path
    if len(runs) == 1:
        page, data, usual = run_page(runs[0])
        place = place or usual
    else:
        names = distinct_names([(one.name, str(path)) for one, path in zip(runs, options.runs, strict=True)])
        compared = [compared_run(one, name) for one, name in zip(runs, names, strict=True)]
        page = comparison_page(compared)
        data = {"runs": {run.name: run.numbers() for run in compared}}
    if place is not None:
        write(page, place, checked=options.output_path is not None)
    for section in page.on_terminal:
        out.table(section.title, section.columns, section.rows)
    files = charts(page, options.charts, out) if options.charts else []
    lines = [page.summary, f"report: {place}" if place else "for a page with curves: --output-path comparison.html"]
    lines += [f"charts: {len(files)} files in {options.charts}"] if files else []
    out.result({**data, "report": place, "charts": files}, "\n".join(lines))
    return None


def write(page: Page, path: Path, *, checked: bool) -> None:
    """Write the page; where ``checked``, not over a file that is none of ours."""
    from eagle3cli.console.report import START, html, refuse_foreign
    from eagle3cli.runtime.files import write_text

    if checked:
        refuse_foreign(path, START, "report of eagle3", "--output-path")
    write_text(path, html(page))


def charts(page: Page, folder: Path, out: Out) -> list[Path]:
    """Write the page's charts."""
    from eagle3cli.console.plot import INSTALL, can_plot, write_charts

    files = write_charts([chart for section in page.sections for chart in section.charts], folder)
    if not can_plot():
        out.warn(f"SVG alone: PNG needs matplotlib; {INSTALL}")
    return files


COMMAND = Command(
    name="report",
    summary="Write the report of a run, or set several runs side by side; of the newest run where none is named.",
    examples=(
        "eagle3 report",
        "eagle3 report runs/quickstart --charts figures",
        "eagle3 report runs/a runs/b --output-path comparison.html",
    ),
    fields=("report.*",),
    arguments=("report.runs",),
    run=run,
)
