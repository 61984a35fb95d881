"""Charts as files: our own SVG, and PNG by matplotlib at the size of a paper's column."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from eagle3cli.console.chart import LIGHT, Bars, Chart, Lines, standalone
from eagle3cli.errors import UsageError

INSTALL = "pip install 'eagle3[plot]'"
MARK = "eagle3"
"""Stands in every file, so that a file of somebody else is not overwritten."""
INCHES = (3.4, 2.3)
DOTS = 300


def write_charts(charts: Iterable[Chart], folder: Path) -> list[Path]:
    """Write each chart as SVG and, where matplotlib is installed, as PNG; returns the files.

    Raises UsageError where a file of that name is not one of ours.
    """
    drawn = [chart for chart in charts if chart.drawn]
    names = _names(drawn)
    with_png = can_plot()
    paths = [folder / f"{name}{end}" for name in names for end in ((".svg", ".png") if with_png else (".svg",))]
    for path in paths:
        if path.exists() and MARK.encode() not in path.read_bytes()[:2000]:
            raise UsageError(
                "foreign-files",
                "exists and is no chart of eagle3",
                where=str(path),
                fix="choose another --charts folder",
            )
    folder.mkdir(parents=True, exist_ok=True)
    for name, chart in zip(names, drawn, strict=True):
        (folder / f"{name}.svg").write_text(f"<!-- {MARK} -->\n{standalone(chart)}\n", encoding="utf-8")
        if with_png:
            _png(chart, folder / f"{name}.png")
    return paths


def can_plot() -> bool:
    """Whether matplotlib is installed."""
    return importlib.util.find_spec("matplotlib") is not None


def _names(charts: list[Chart]) -> list[str]:
    """A file name for each chart, from its title."""
    names: list[str] = []
    for chart in charts:
        name = re.sub(r"[^a-z0-9]+", "_", chart.title.lower()).strip("_")[:60] or "chart"
        names.append(name if name not in names else f"{name}_{len(names)}")
    return names


def _png(chart: Chart, path: Path) -> None:
    import matplotlib as mpl
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with mpl.rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 8}):
        figure = Figure(figsize=INCHES, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot()
        _draw_lines(chart, axes) if isinstance(chart, Lines) else _draw_bars(chart, axes)
        figure.savefig(path, dpi=DOTS, metadata={"Software": MARK})


def _draw_lines(chart: Lines, axes: Any) -> None:
    for number, (name, points) in enumerate(chart.drawn.items()):
        xs, ys = zip(*points, strict=True)
        marker = "o" if len(points) == 1 else None
        axes.plot(xs, ys, label=name, color=LIGHT[f"c{number % 8 + 1}"], linewidth=1.2, marker=marker)
    axes.set(xlabel=chart.x, ylabel=chart.y)
    axes.grid(axis="y", color=LIGHT["rule"], linewidth=0.5)
    if chart.from_zero:
        axes.set_ylim(bottom=0)
    if len(chart.drawn) > 1:
        axes.legend(frameon=False, fontsize=7)


def _draw_bars(chart: Bars, axes: Any) -> None:
    values = list(chart.values.values())
    bars = axes.barh(list(chart.values), values, color=LIGHT["c1"])
    axes.bar_label(bars, labels=[chart.value_text(value) for value in values], padding=2)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    if chart.mark is not None:
        axes.axvline(chart.mark, color=LIGHT["dim"], linewidth=0.8, linestyle="--")
