"""Reports of runs, and watching one."""

from __future__ import annotations

from pathlib import Path

from eagle3cli.settings.table import Table, option


class ReportSettings(Table):
    """eagle3 report: the report of a run, or several runs side by side."""

    runs: tuple[Path, ...] = option(
        (), "Folders of train, run or bench (or a results file); default: the newest run below ./runs."
    )
    output_path: Path | None = option(
        None, "The page; default: report.html in the run's folder, and of several runs none."
    )
    charts: Path | None = option(None, "Also write every chart to this folder, as SVG and PNG.")


class WatchSettings(Table):
    """eagle3 watch: a run that is going on, from another terminal."""

    run: Path | None = option(None, "Folder of train or run; default: the newest below ./runs.")
    once: bool = option(False, "Show the run as it is now, and end.")
