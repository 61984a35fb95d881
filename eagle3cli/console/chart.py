"""Charts as SVG without a script: lines over a number, and bars by name.

Colours are CSS variables, so that a page decides what they are in light and dark; :func:`standalone` puts fixed ones
in, for a file of its own. Letters keep their size beside the lines: a chart is drawn for the width of a phone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH = 400
PLOT = 180
LEFT = 50
RIGHT = 14
TOP = 12
BOTTOM = 40
LETTER = 7.0
LINE = 18
"""About the width of a letter, and the height of a line of the legend."""
BAR = 14
GAP = 26
MOST_POINTS = 500
"""Points of a line that are drawn; of longer ones the extremes of every stretch."""
COLOURS = 8
NEUTRAL = "var(--c8)"
"""The grey among the colours: of what stands alone in its chart."""
TRAINED_ON = "training rows"
"""How the name of a line begins that has a colour of its own: it is set against held-out rows."""
PALETTE = (
    "page",
    "card",
    "ink",
    "dim",
    "rule",
    "trained",
    *(f"c{number}" for number in range(1, COLOURS + 1)),
)
LIGHT = dict(zip(PALETTE, (
    "#ffffff", "#f6f8fa", "#1f2328", "#57606a", "#d0d7de", "#9a6700",
    "#0969da", "#bc4c00", "#1a7f37", "#8250df", "#bf3989", "#0e7c86", "#7d4e00", "#57606a",
), strict=True))  # fmt: skip
DARK = dict(zip(PALETTE, (
    "#0d1117", "#161b22", "#e6edf3", "#9da7b3", "#30363d", "#e3b341",
    "#58a6ff", "#f0883e", "#3fb950", "#bc8cff", "#ff7bc5", "#39c5cf", "#d4a72c", "#9da7b3",
), strict=True))  # fmt: skip

Points = Sequence[tuple[float, float]]

LARGEST = 1e300


def is_number(value: object) -> bool:
    """Whether something can be drawn: what was read from a file may be anything."""
    return isinstance(value, int | float) and abs(value) < LARGEST


@dataclass(frozen=True)
class Lines:
    """One line per series over a common axis; what is not a number is left out."""

    title: str
    x: str
    y: str
    series: Mapping[str, Points] = field(default_factory=dict)
    from_zero: bool = False
    """The y axis begins at 0."""
    marks: Sequence[float] = ()
    """Places of x at which something begins, told by ``marked``: a faint upright line each."""
    marked: str = ""
    note: str = ""
    """What a reader has to know before comparing its lines; stands beside the chart."""

    @property
    def drawn(self) -> dict[str, list[tuple[float, float]]]:
        """The series that have points, thinned."""
        finite = {n: [p for p in points if is_number(p[0]) and is_number(p[1])] for n, points in self.series.items()}
        return {name: thin(points) for name, points in finite.items() if points}


@dataclass(frozen=True)
class Bars:
    """A bar by name, with a dashed line at ``mark``."""

    title: str
    values: Mapping[str, float] = field(default_factory=dict)
    mark: float | None = None
    unit: str = ""
    """``%`` shows shares as per cent; else it stands behind the number."""
    by_series: bool = False
    """The bars are those things that are lines elsewhere on the page, in this order, and have their colours."""
    note: str = ""

    @property
    def drawn(self) -> Mapping[str, float]:
        """The bars of what is a number."""
        return {name: value for name, value in self.values.items() if is_number(value)}

    def value_text(self, value: float) -> str:
        """A bar's number."""
        if self.unit == "%":
            return f"{100 * value:.1f}%"
        return (f"{value:.3f}" if abs(value) < 10 else f"{value:,.1f}") + self.unit


Chart = Lines | Bars


def thin(points: Points, most: int = MOST_POINTS) -> list[tuple[float, float]]:
    """At most about ``most`` points, in order: both ends, and the lowest and highest of every stretch between."""
    if len(points) <= most:
        return list(points)
    stretches = most // 2 - 1
    indices = {0, len(points) - 1}
    for number in range(stretches):
        part = range(len(points) * number // stretches, len(points) * (number + 1) // stretches)
        indices |= {min(part, key=lambda i: points[i][1]), max(part, key=lambda i: points[i][1])}
    return [points[i] for i in sorted(indices)]


def svg(chart: Chart) -> str:
    """The chart; empty where there is nothing to draw."""
    if not chart.drawn:
        return ""
    return _lines(chart) if isinstance(chart, Lines) else _bars(chart)


def standalone(chart: Chart) -> str:
    """The chart as a file of its own, in light colours on white."""
    drawn = re.sub(r"var\(--(\w+)\)", lambda match: LIGHT[match[1]], svg(chart))
    return drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" font-family="Helvetica, sans-serif" ', 1)


def _lines(chart: Lines) -> str:
    drawn = chart.drawn
    shown = [(list(chart.series).index(name), name) for name in drawn]
    legend, legend_height = _legend(shown, len(chart.series)) if len(drawn) > 1 else ("", 0)
    top = TOP + legend_height + LINE + 10
    xs, ys = zip(*(point for points in drawn.values() for point in points), strict=True)
    x_low, x_high = _apart(min(xs), max(xs))
    y_ticks = ticks(min(0.0, *ys) if chart.from_zero else min(ys), max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_low) / (x_high - x_low)
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return LEFT + across * (WIDTH - LEFT - RIGHT), top + (1 - up) * PLOT

    parts = [legend, text(4, top - 13, chart.y, "start")]
    inner = sparse([mark for mark in chart.marks if x_low < mark < x_high])
    for mark in inner:
        at = place(mark, y_ticks[0])[0]
        parts.append(f'<path d="M{at:.1f} {top}v{PLOT}" stroke="var(--dim)" stroke-dasharray="2 4" opacity=".6"/>')
    if inner and chart.marked:
        words = f"⋮ {chart.marked}" if len(inner) == len(chart.marks) else f"⋮ some of {chart.marked}"
        parts.append(text(WIDTH - RIGHT, top - 13, words, "end"))
    for y, y_text in zip(y_ticks, axis_texts(y_ticks), strict=True):
        height = place(x_low, y)[1]
        parts.append(f'<path d="M{LEFT} {height:.1f}H{WIDTH - RIGHT}" stroke="var(--rule)"/>')
        parts.append(text(LEFT - 6, height + 4, y_text, "end"))
    whole = all(x == int(x) for x in xs)  # there is no step between two
    inside = [x for x in ticks(x_low, x_high) if x_low <= x <= x_high and (x == int(x) or not whole)]
    x_texts = zip(inside, axis_texts(inside), strict=True)
    parts += [text(place(x, y_ticks[0])[0], top + PLOT + 17, words, "middle") for x, words in x_texts]
    parts.append(text((WIDTH + LEFT - RIGHT) / 2, top + PLOT + 34, chart.x, "middle"))
    for name, points in drawn.items():
        colour, dash = _stroke(list(chart.series).index(name), name, len(chart.series))
        placed = [place(*point) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in placed)
        x, y = placed[-1]
        stroke = f'fill="none" stroke="{colour}" stroke-width="2" stroke-linejoin="round"{dash}'
        parts.append(f'<polyline data-name="{escape(name)}" points="{path}" {stroke}/>')
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>')
    scale = f"{x_low:.10g} {x_high:.10g} {LEFT} {WIDTH - RIGHT}"
    heights = f"{y_ticks[0]:.10g} {y_ticks[-1]:.10g} {top + PLOT} {top}"
    return _whole(chart, top + PLOT + BOTTOM, parts, f' data-x="{scale}" data-y="{heights}"')


def _bars(chart: Bars) -> str:
    most = max(*chart.drawn.values(), chart.mark or 0.0, 1e-9)
    scale = (WIDTH - 16 - 64) / most
    parts = []
    for number, (name, value) in enumerate(chart.drawn.items()):
        top = number * (BAR + GAP)
        parts.append(text(8, top + 16, name, "start"))
        length = max(1.0, value * scale)
        place = list(chart.values).index(name)
        colour = _stroke(place, name, len(chart.values) if chart.by_series else 1)[0]
        parts.append(f'<rect x="8" y="{top + 22}" width="{length:.1f}" height="{BAR}" rx="2" fill="{colour}"/>')
        parts.append(text(8 + length + 6, top + 34, chart.value_text(value), "start", "ink"))
    height = len(chart.drawn) * (BAR + GAP) + 6
    if chart.mark is not None:
        at = 8 + chart.mark * scale
        parts.append(f'<path d="M{at:.1f} 0V{height}" stroke="var(--dim)" stroke-dasharray="4 3"/>')
    return _whole(chart, height, parts)


def _whole(chart: Chart, height: float, parts: Sequence[str], more: str = "") -> str:
    name = f"<title>{escape(chart.title)}</title>"
    size = f'viewBox="0 0 {WIDTH} {height:g}" role="img" font-size="13"'
    return f"<svg {size}{more}>{name}{''.join(parts)}</svg>"


def _legend(names: Sequence[tuple[int, str]], lines: int) -> tuple[str, int]:
    """The series, each with its place among all ``lines``, by colour, in as many rows as they need, and the height."""
    parts: list[str] = []
    x = 8.0
    y = TOP + 6
    for number, name in names:
        width = 22 + LETTER * len(name) + 10
        if x > 8 and x + width > WIDTH:
            x = 8.0
            y += LINE
        colour, dash = _stroke(number, name, lines)
        parts.append(f'<path d="M{x:g} {y - 4}h14" stroke="{colour}" stroke-width="3"{dash}/>')
        parts.append(text(x + 19, y, name, "start"))
        x += width
    return "".join(parts), y - TOP + 4


def text(x: float, y: float, words: str, anchor: str, colour: str = "dim") -> str:
    """Words in a chart."""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="var(--{colour})">{escape(words)}</text>'


def _stroke(number: int, name: str, lines: int) -> tuple[str, str]:
    """Colour and dashes of a line or bar: a colour means the same on a whole page.

    A depth has the colour of its number, whether it is called ``depth 3`` or ``k = 3``; what stands alone is grey;
    others have theirs by their place. Lines beyond the colours are told from the first ones by dashes.
    """
    depth = re.fullmatch(r"(?:depth|k =) (\d+)", name)
    if depth:
        number = int(depth[1]) - 1
    elif name.startswith(TRAINED_ON):
        return "var(--trained)", ' stroke-dasharray="6 3"'
    elif lines == 1:
        return NEUTRAL, ""
    return f"var(--c{number % COLOURS + 1})", ' stroke-dasharray="6 3"' if number >= COLOURS else ""


def sparse(marks: Sequence[float], most: int = 20) -> list[float]:
    """At most ``most`` of the places, evenly chosen: more would be a grey area."""
    return list(marks[:: -(-len(marks) // most)]) if marks else []


def number_text(value: float) -> str:
    """A number of an axis: 2.5e-4, 0.25, 1,500, 20k, 1.5M."""
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if abs(value) >= size:
            return f"{value / (1e3 if sign == 'k' else size):g}{sign}"
    if 0 < abs(value) < 1e-3:
        return f"{value:.2e}".replace(".00e", "e").replace("0e", "e").replace("e-0", "e-")
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def axis_texts(values: Sequence[float]) -> list[str]:
    """The numbers of an axis, with the same number of decimals where they are written out."""
    texts = list(map(number_text, values))
    if not all(re.fullmatch(r"-?[\d,]+(\.\d+)?", words) for words in texts):
        return texts
    decimals = max((len(words.partition(".")[2]) for words in texts), default=0)
    return [f"{value:,.{decimals}f}" for value in values]


def _apart(low: float, high: float) -> tuple[float, float]:
    """A stretch that is wide enough to be drawn."""
    least = max(abs(low), abs(high), 1e-3) * 1e-3
    return low, max(high, low + least)


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers that reach from ``low`` to ``high``."""
    low, high = _apart(low, high)
    size = (high - low) / 4
    unit = 10.0 ** math.floor(math.log10(size))
    step = next(unit * factor for factor in (1, 2, 2.5, 5, 10, 20) if unit * factor >= size * 0.999)
    first = int(low // step)
    marks = [round(first * step, 12)]
    while marks[-1] < high - step * 1e-9:
        marks.append(round((first + len(marks)) * step, 12))
    return marks
