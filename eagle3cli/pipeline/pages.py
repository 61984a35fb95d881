"""Any kind of run as a page of its own, and as one of a comparison."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from eagle3cli.console.benchmark import page as bench_page
from eagle3cli.console.report import Page
from eagle3cli.errors import DataError
from eagle3cli.pipeline.report import folder_page, training_folder
from eagle3cli.runs.compare import ComparedRun, final_numbers
from eagle3cli.runs.find import RunPath, read_results
from eagle3cli.runs.folder import REPORT, is_run, read_run
from eagle3cli.runs.page import training_page


def run_page(run_path: RunPath) -> tuple[Page, dict[str, Any], Path]:
    """A run's page, its numbers, and where the page belongs. Raises DataError for a benchmark without results."""
    if run_path.kind == "train":
        run = read_run(run_path.path)
        return training_page(run), final_numbers(run), run_path.path / REPORT
    if run_path.kind == "chain":
        return folder_page(run_path.path), compared_run(run_path, run_path.name).numbers(), run_path.path / REPORT
    settings, rows = read_results(run_path.path)
    target = Path(str(settings.get("target") or "the servers' model")).name
    page = bench_page(rows, str(settings.get("engine", "?")), target)
    return page, {"configurations": rows}, run_path.path.with_suffix(".html")


def compared_run(run_path: RunPath, name: str) -> ComparedRun:
    """A run's training and what was measured of it, as far as there are any."""
    if run_path.kind == "bench":
        return ComparedRun(name, bench=read_results(run_path.path)[1])
    if run_path.kind == "train":
        return ComparedRun(name, read_run(run_path.path))
    folder = training_folder(run_path.path)
    training = read_run(folder) if is_run(folder) else None
    rows: list[dict[str, Any]] = []
    for file in sorted((run_path.path / "bench").glob("*.jsonl")):
        with suppress(DataError):  # not measured yet
            rows += read_results(file)[1]
    return ComparedRun(name, training, rows)
