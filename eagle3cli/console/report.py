"""The report of a run as Markdown and as one self-contained HTML page; charts are inline SVG, all text is escaped."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT, LEFT, BOTTOM, TOP = 640, 260, 52, 34, 14
COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a", "#bf3989")
STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #1f2328 }
table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .3rem .8rem; border-bottom: 1px solid #d0d7de }
th { text-align: left } td.n { text-align: right; font-variant-numeric: tabular-nums }
svg { max-width: 100%; height: auto } .note { color: #57606a } h1 { margin-bottom: 0 }
@media (prefers-color-scheme: dark) { body { background: #0d1117; color: #e6edf3 } }
"""

Cells = Sequence[object]
Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Section:
    """A heading with text, a table and a chart, each of them optional."""

    title: str
    text: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Cells] = ()
    chart: str = ""
    """SVG from :func:`line_chart`."""
    on_terminal: bool = True
    """Short enough to be shown when the run ends."""


@dataclass(frozen=True)
class Page:
    """A report: what it is about in a line, then sections."""

    title: str
    summary: str
    sections: Sequence[Section] = field(default=())


def markdown(page: Page) -> str:
    """The page as Markdown, without the charts."""
    parts = [f"# {page.title}", page.summary]
    for section in page.sections:
        if section.text or section.rows:
            parts += [f"## {section.title}", *section.text]
        if section.rows:
            parts.append(markdown_table(section.columns, section.rows))
    return "\n\n".join(parts) + "\n"


def markdown_table(columns: Sequence[str], rows: Sequence[Cells]) -> str:
    """A table; numbers stand to the right."""
    cells = [[cell_text(value).replace("|", "\\|").replace("\n", " ") for value in row] for row in rows]
    rule = ["---:" if _numeric([row[i] for row in rows]) else "---" for i in range(len(columns))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(columns), rule, *cells])


def html(page: Page) -> str:
    """The page as HTML that needs nothing else."""
    body = [f"<h1>{escape(page.title)}</h1>", f"<p>{escape(page.summary)}</p>"]
    for section in page.sections:
        body.append(f"<h2>{escape(section.title)}</h2>")
        body += [f'<p class="note">{escape(text)}</p>' for text in section.text]
        body += [section.chart, _html_table(section.columns, section.rows)]
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(page.title)}</title>\n'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n<body>\n'
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )


def _html_table(columns: Sequence[str], rows: Sequence[Cells]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in columns)
    lines = []
    for row in rows:
        kinds = [' class="n"' if _numeric([value]) else "" for value in row]
        cells = zip(kinds, row, strict=True)
        lines.append("".join(f"<td{kind}>{escape(cell_text(value))}</td>" for kind, value in cells))
    return f"<table><tr>{head}</tr>\n" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


def cell_text(value: object) -> str:
    """A value as people read it."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _numeric(values: Cells) -> bool:
    known = [value for value in values if value is not None]
    return bool(known) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in known)


def line_chart(series: Mapping[str, Points], x_label: str, y_label: str) -> str:
    """An SVG of one line per series; empty where there is nothing to draw."""
    drawn = {name: points for name, points in series.items() if points}
    if not drawn:
        return ""
    xs, ys = zip(*(point for points in drawn.values() for point in points), strict=True)
    x_ticks, y_ticks = _ticks(min(xs), max(xs)), _ticks(min(ys), max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + across * (WIDTH - LEFT - 10), TOP + (1 - up) * (HEIGHT - TOP - BOTTOM)

    parts = []
    for y in y_ticks:
        left, height = place(x_ticks[0], y)
        parts.append(f'<line x1="{left:.1f}" x2="{WIDTH - 10}" y1="{height:.1f}" y2="{height:.1f}" stroke="#d0d7de"/>')
        parts.append(_label(left - 6, height + 4, f"{y:g}", "end"))
    parts += [_label(place(x, y_ticks[0])[0], HEIGHT - BOTTOM + 16, f"{x:g}", "middle") for x in x_ticks]
    parts.append(_label((WIDTH + LEFT) / 2, HEIGHT - 3, x_label, "middle"))
    parts.append(_label(LEFT, TOP - 3, y_label, "start"))
    for number, (name, points) in enumerate(drawn.items()):
        colour = COLOURS[number % len(COLOURS)]
        placed = [place(*point) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<circle cx="{placed[-1][0]:.1f}" cy="{placed[-1][1]:.1f}" r="3" fill="{colour}"/>')
        if len(drawn) > 1:
            parts.append(_label(WIDTH - 12, TOP + 14 * (number + 1), name, "end", colour))
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'


def _label(x: float, y: float, text: str, anchor: str, colour: str = "#57606a") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" font-size="12" text-anchor="{anchor}" fill="{colour}">{escape(text)}</text>'


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers that reach from ``low`` to ``high``."""
    least = max(abs(low), abs(high), 1e-3) * 1e-3
    high = max(high, low + least)
    size = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(size))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10, 20) if unit * factor >= size * 0.999)
    first = int(low // step)
    ticks = [round(first * step, 12)]
    while ticks[-1] < high - step * 1e-9:
        ticks.append(round((first + len(ticks)) * step, 12))
    return ticks
