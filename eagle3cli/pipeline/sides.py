"""Any kind of run as a page of its own, and as one side of a comparison."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from eagle3cli.console.benchmark import page as bench_page
from eagle3cli.console.report import Page
from eagle3cli.errors import DataError
from eagle3cli.pipeline.report import report_of, training_folder
from eagle3cli.runs.compare import Side, final_numbers
from eagle3cli.runs.find import Found, results_of
from eagle3cli.runs.folder import REPORT, is_run, read_run
from eagle3cli.runs.page import training_page


def page_of(found: Found) -> tuple[Page, dict[str, Any], Path]:
    """A run's page, its numbers, and where the page belongs. Raises DataError for a benchmark without results."""
    if found.kind == "train":
        run = read_run(found.path)
        return training_page(run), final_numbers(run), found.path / REPORT
    if found.kind == "chain":
        return report_of(found.path), side_of(found, found.name).numbers(), found.path / REPORT
    settings, rows = results_of(found.path)
    target = Path(str(settings.get("target") or "the servers' model")).name
    page = bench_page(rows, str(settings.get("engine", "?")), target)
    return page, {"configurations": rows}, found.path.with_suffix(".html")


def side_of(found: Found, name: str) -> Side:
    """A run's training and what was measured of it, as far as there are any."""
    if found.kind == "bench":
        return Side(name, bench=results_of(found.path)[1])
    if found.kind == "train":
        return Side(name, read_run(found.path))
    folder = training_folder(found.path)
    training = read_run(folder) if is_run(folder) else None
    rows: list[dict[str, Any]] = []
    for file in sorted((found.path / "bench").glob("*.jsonl")):
        with suppress(DataError):  # not measured yet
            rows += results_of(file)[1]
    return Side(name, training, rows)
