"""A report as Markdown and as one self-contained HTML page that loads nothing; all text is escaped.

The page adapts to light and dark and to narrow screens: charts share the width, wide tables scroll in their box. Its
one script shows a chart's values under the pointer; its hash is in the page's policy, which forbids any other.
"""

from __future__ import annotations

import base64
import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from eagle3cli.console.chart import DARK, LIGHT, Chart, svg
from eagle3cli.console.samples import STYLE as SAMPLE_STYLE
from eagle3cli.errors import UsageError

START = '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><meta name="generator" content="eagle3">'
"""How every page of a report begins; a file that does not is not overwritten."""


def _variables(colours: Mapping[str, str]) -> str:
    return ";".join(f"--{name}:{value}" for name, value in colours.items())


STYLE = f"""
:root {{ color-scheme: light dark; {_variables(LIGHT)} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK)} }} }}
* {{ box-sizing: border-box }}
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 0 auto; padding: 1.5rem 1rem 4rem;
  color: var(--ink); background: var(--page); overflow-wrap: anywhere }}
h1 {{ font-size: 1.6rem; line-height: 1.25; margin: 0 0 .4rem }}
h2 {{ font-size: 1.15rem; margin: 2.2rem 0 .6rem; padding-top: .9rem; border-top: 1px solid var(--rule) }}
p {{ margin: .4rem 0; max-width: 56rem }} .note {{ color: var(--dim) }}
.tiles {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(9rem, 1fr)); gap: .7rem; margin: 1.2rem 0 }}
.tiles div, figure {{ background: var(--card); border: 1px solid var(--rule); border-radius: 8px }}
.tiles div {{ padding: .6rem .8rem }} .tiles dt {{ color: var(--dim); font-size: .85rem }}
.tiles dd {{ margin: 0; font-size: 1.25rem; font-weight: 600; font-variant-numeric: tabular-nums }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); gap: .9rem }}
figure {{ margin: 0; padding: .6rem .6rem .3rem; min-width: 0 }} figcaption {{ font-weight: 600; font-size: .95rem }}
svg {{ display: block; width: 100%; height: auto; touch-action: pan-y }}
.warn {{ margin: .2rem 0; padding: .1rem .5rem; border-left: 3px solid var(--trained); font-size: .85rem }}
.read {{ min-height: 1.4em; margin: 0; color: var(--dim); font-size: .82rem; font-variant-numeric: tabular-nums }}
.scroll {{ overflow-x: auto; margin: .8rem 0 }}
table {{ border-collapse: collapse; font-size: .92rem; overflow-wrap: normal }}
th, td {{ padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--rule); text-align: left; vertical-align: top }}
td.n, th.n {{ text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }}
td {{ max-width: 34rem; overflow-wrap: anywhere; min-width: 4.5rem }} td:first-child {{ min-width: 7rem }}
figure .scroll {{ margin: 0 }} figure td {{ min-width: 0 }} figure td:first-child {{ min-width: 2rem }}
summary {{ cursor: pointer; color: var(--dim) }}
{SAMPLE_STYLE}
"""
SCRIPT = """
for (const chart of document.querySelectorAll("svg[data-x]")) {
  const readout = document.createElement("p"), lines = [...chart.querySelectorAll("polyline")].map(line => ({
    name: line.dataset.name, points: line.getAttribute("points").split(" ").map(pair => pair.split(",").map(Number))}));
  const [x0, x1, left, right] = chart.dataset.x.split(" ").map(Number);
  const [y0, y1, low, high] = chart.dataset.y.split(" ").map(Number);
  const short = value => Number(value.toPrecision(4)).toLocaleString("en");
  readout.className = "read";
  chart.after(readout);
  chart.addEventListener("pointermove", event => {
    const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(chart.getScreenCTM().inverse()).x;
    const near = lines.map(line => line.points.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a));
    const first = near.reduce((a, b) => Math.abs(b[0] - at) < Math.abs(a[0] - at) ? b : a)[0];
    const values = lines.map((line, i) => (lines.length > 1 ? line.name + " " : "") +
      short(y0 + (near[i][1] - low) / (high - low) * (y1 - y0)));
    readout.textContent = short(x0 + (first - left) / (right - left) * (x1 - x0)) + ": " + values.join(", ");
  });
}
"""
SCRIPT_HASH = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
POLICY = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{SCRIPT_HASH}'"
HEAD = (
    f'{START}\n<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
    '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
)

BESIDE = 4
"""A table of so few columns stands among the charts."""

Cells = Sequence[object]


@dataclass(frozen=True)
class Section:
    """A heading with text, a table and charts, each of them optional."""

    title: str
    text: Sequence[str] = ()
    columns: Sequence[str] = ()
    rows: Sequence[Cells] = ()
    charts: Sequence[Chart] = ()
    html: str = ""
    """A part of the page that is HTML already, as :func:`eagle3cli.console.samples.html_samples` makes it."""
    folded: bool = False
    """The table is long and opens by a click."""
    on_terminal: bool = True
    """Short enough to be shown when the run ends."""

    @property
    def empty(self) -> bool:
        """Nothing but a heading."""
        return not (self.text or self.rows or self.html or any(chart.drawn for chart in self.charts))


@dataclass(frozen=True)
class Page:
    """A report: what it is about in a line, the numbers that matter most, then sections."""

    title: str
    summary: str
    sections: Sequence[Section] = ()
    tiles: Sequence[tuple[str, str]] = ()

    @property
    def on_terminal(self) -> list[Section]:
        """The sections whose tables are shown when the command ends."""
        return [section for section in self.sections if section.rows and section.on_terminal]


def refuse_foreign(path: Path, start: str, kind: str, flag: str) -> None:
    """Raise UsageError where ``path`` is there and does not begin as the pages of this ``kind`` do."""
    if path.exists() and not (path.is_file() and path.read_bytes().startswith(start.encode())):
        what = "is a folder" if path.is_dir() else f"exists and is no {kind}"
        raise UsageError("foreign-files", what, where=f"{flag} {path}", fix="choose another file")


def markdown(page: Page) -> str:
    """The page as Markdown, without the charts."""
    parts = [f"# {page.title}", page.summary]
    if page.tiles:
        parts.append("\n".join(f"- {name}: {value}" for name, value in page.tiles))
    for section in page.sections:
        if section.text or section.rows:
            parts += [f"## {section.title}", *section.text]
        if section.rows:
            parts.append(markdown_table(section.columns, section.rows))
    return "\n\n".join(parts) + "\n"


def markdown_table(columns: Sequence[str], rows: Sequence[Cells]) -> str:
    """A table; numbers stand to the right."""
    cells = [[value.replace("|", "\\|").replace("\n", " ") for value in row] for row in texts_of(rows)]
    rule = ["---:" if _numeric([row[i] for row in rows]) else "---" for i in range(len(columns))]
    return "\n".join("| " + " | ".join(row) + " |" for row in [list(columns), rule, *cells])


def html(page: Page) -> str:
    """The page as HTML that needs nothing else."""
    body = [f"<h1>{escape(page.title)}</h1>", f"<p>{escape(page.summary)}</p>"]
    if page.tiles:
        tiles = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in page.tiles)
        body.append(f'<dl class="tiles">{tiles}</dl>')
    for section in page.sections:
        if section.empty:
            continue
        body.append(f"<section><h2>{escape(section.title)}</h2>")
        body += [f'<p class="note">{escape(text)}</p>' for text in section.text]
        table = _table(section)
        beside = len(section.columns) <= BESIDE and not section.folded and any(chart.drawn for chart in section.charts)
        body += [_charts(section.charts, table if beside else ""), section.html, "" if beside else table, "</section>"]
    return (
        f"{HEAD}<title>{escape(page.title)}</title><style>{STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in body if part)
        + f"\n<script>{SCRIPT}</script></body></html>\n"
    )


def _charts(charts: Sequence[Chart], table: str) -> str:
    """The charts side by side, and the table as one of them."""
    drawn = [(chart, svg(chart)) for chart in charts]
    figures = [
        f"<figure><figcaption>{escape(chart.title)}</figcaption>{_note(chart.note)}{image}</figure>"
        for chart, image in drawn
        if image
    ]
    figures += [f"<figure>{table}</figure>"] if table else []
    return f'<div class="charts">{"".join(figures)}</div>' if figures else ""


def _note(text: str) -> str:
    return f'<p class="warn">{escape(text)}</p>' if text else ""


def _table(section: Section) -> str:
    if not section.rows:
        return ""
    right = [' class="n"' if _numeric([row[i] for row in section.rows]) else "" for i in range(len(section.columns))]
    head = "".join(f"<th{kind}>{escape(name)}</th>" for kind, name in zip(right, section.columns, strict=True))
    lines = []
    for row in texts_of(section.rows):
        cells = zip(right, row, strict=True)
        lines.append("".join(f"<td{kind}>{escape(value)}</td>" for kind, value in cells))
    table = f"<table><tr>{head}</tr>\n" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "</table>"
    box = f'<div class="scroll" tabindex="0">{table}</div>'
    if section.folded:
        return f"<details><summary>{len(section.rows):,} lines</summary>{box}</details>"
    return box


def texts_of(rows: Sequence[Cells]) -> list[list[str]]:
    """The cells as people read them; numbers of a column that are fractions have the same number of decimals."""
    columns = list(zip(*rows, strict=True))
    places = [_decimals(column) if _numeric(column) else None for column in columns]
    return [[cell_text(value, place) for value, place in zip(row, places, strict=True)] for row in rows]


def _decimals(column: Cells) -> int | None:
    """Decimals of a column of numbers, by its largest one; None where all are whole numbers."""
    fractions = [abs(value) for value in column if isinstance(value, float) and math.isfinite(value)]
    return (3 if max(fractions) < 10 else 1) if fractions else None


def cell_text(value: object, decimals: int | None = None) -> str:
    """A value as people read it, a fraction with ``decimals``, or as many as it needs."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:,.{3 if abs(value) < 10 else 1}f}" if decimals is None else f"{value:,.{decimals}f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _numeric(values: Cells) -> bool:
    present = [value for value in values if value is not None]
    return bool(present) and all(map(_is_number, present))


def _is_number(value: object) -> bool:
    """A number, also as a text: 6.7, 1.18x, 46.0%."""
    if isinstance(value, str):
        return re.fullmatch(r"[-+]?[\d,]*\d(\.\d+[x%]?|[x%])", value) is not None
    return isinstance(value, int | float) and not isinstance(value, bool)
