"""Charts draw what they are given, in colours that can be told from the page."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.console.chart import (
    DARK,
    LIGHT,
    WIDTH,
    Bars,
    Lines,
    axis_texts,
    number_text,
    standalone,
    svg,
    thin,
    ticks,
)

# training flushes subnormal numbers to zero in this process, and hypothesis refuses to draw them then
NUMBERS = st.floats(-1e6, 1e6, allow_nan=False, allow_subnormal=False)


def test_a_chart_has_a_line_per_series() -> None:
    series = {"loss": [(0, 2.0), (10, 1.0)], "other <": [(0, 1.5), (10, math.nan), (11, 1.2)], "none": []}
    root = ElementTree.fromstring(svg(Lines("t", "step", "loss", series)))
    assert [line.get("data-name") for line in root.findall("polyline")] == ["loss", "other <"]
    assert "other <" in [element.text for element in root.findall("text")]
    assert svg(Lines("t", "x", "y", {"none": []})) == ""
    assert svg(Lines("t", "x", "y", {"none": [(0, math.inf)]})) == ""


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=20), st.booleans())
def test_every_point_is_inside_the_chart(points: list[tuple[float, float]], from_zero: bool) -> None:
    drawn = svg(Lines("t", "x", "y", {"a": points}, from_zero))
    box = re.search(r'viewBox="0 0 (\d+) (\d+)"', drawn)
    found = re.search(r'points="([^"]*)"', drawn)
    assert found is not None
    assert box is not None
    for pair in found[1].split():
        x, y = map(float, pair.split(","))
        assert 0 <= x <= int(box[1]) == WIDTH
        assert 0 <= y <= int(box[2])


def test_the_legend_of_many_series_stays_inside() -> None:
    series = {f"a run with a name {i}": [(0.0, float(i)), (1.0, 0.0)] for i in range(12)}
    root = ElementTree.fromstring(svg(Lines("t", "x", "y", series)))
    words = [element for element in root.findall("text") if "name" in (element.text or "")]
    assert len(words) == 12
    assert all(float(word.get("x", "")) + 7 * len(word.text or "") <= WIDTH for word in words)
    strokes = {(line.get("stroke"), line.get("stroke-dasharray")) for line in root.findall("polyline")}
    assert len(strokes) == 12


@given(NUMBERS, NUMBERS)
def test_ticks_reach_around_the_values(a: float, b: float) -> None:
    found = ticks(min(a, b), max(a, b))
    hairline = 1e-6 * (1 + abs(a - b))
    assert found[0] <= min(a, b) + hairline
    assert found[-1] >= max(a, b) - hairline
    assert 2 <= len(found) <= 8


def test_there_is_no_step_between_two() -> None:
    root = ElementTree.fromstring(svg(Lines("t", "k", "y", {"a": [(1, 0.2), (3, 0.9)]})))
    told = [element.text for element in root.findall("text") if element.get("text-anchor") == "middle"]
    assert told == ["1", "2", "3", "k"]


def test_bars_are_as_long_as_their_values() -> None:
    chart = svg(Bars("t", {"a": 1.0, "b": 2.0, "c": 0.0}))
    widths = [float(width) for width in re.findall(r'<rect[^>]* width="([^"]*)"', chart)]
    assert widths[1] == pytest.approx(2 * widths[0], rel=0.01)
    assert 0 < widths[2] <= 1
    assert svg(Bars("t")) == ""
    assert "25.0%" in svg(Bars("t", {"a": 0.25}, unit="%"))


def test_long_lines_are_thinned_and_keep_their_extremes() -> None:
    points = [(float(i), math.sin(i / 300)) for i in range(100_000)]
    points[54_321], points[77_777] = (54_321.0, 9.0), (77_777.0, -9.0)
    kept = thin(points)
    assert len(kept) <= 500
    assert {points[0], points[-1], points[54_321], points[77_777]} <= set(kept)
    assert kept == sorted(kept)
    assert thin(points[:500]) == points[:500]
    assert len(svg(Lines("t", "x", "y", {"a": points}))) < 10_000


def test_a_file_of_its_own_has_fixed_colours() -> None:
    drawn = standalone(Lines("t", "x", "y", {"a": [(0, 1), (1, 2)], "b": [(0, 2)]}))
    assert "var(" not in drawn
    assert LIGHT["c1"] in drawn
    assert ElementTree.fromstring(drawn).tag == "{http://www.w3.org/2000/svg}svg"


def luminance(colour: str) -> float:
    shares = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_can_be_told_from_the_page(colours: dict[str, str]) -> None:
    """Contrast as the Web Content Accessibility Guidelines measure it: 4.5 for text, 3 for lines."""
    for ground in ("page", "card"):
        for name, least in [("ink", 4.5), ("dim", 4.5), *((f"c{i}", 3.0) for i in range(1, 9))]:
            pair = sorted((luminance(colours[name]), luminance(colours[ground])))
            assert (pair[1] + 0.05) / (pair[0] + 0.05) >= least, (name, ground)


def test_numbers_of_an_axis_are_short() -> None:
    values = (0.0, 2.5e-4, 1e-4, 7.25e-5, 0.25, 7, 1500, 20_000, 1.5e6, 2e9)
    told = ["0", "2.5e-4", "1e-4", "7.25e-5", "0.25", "7", "1,500", "20k", "1.5M", "2G"]
    assert [number_text(value) for value in values] == told


def strokes(chart: Lines) -> dict[str, str]:
    lines = ElementTree.fromstring(svg(chart)).findall("polyline")
    return {line.get("data-name", ""): line.get("stroke", "") for line in lines}


def test_a_colour_means_one_thing() -> None:
    points = [(0.0, 1.0), (1.0, 2.0)]
    depths = strokes(Lines("t", "x", "y", {"depth 1": points, "depth 3": points}))
    assert depths == {"depth 1": "var(--c1)", "depth 3": "var(--c3)"}
    by_k = strokes(Lines("t", "x", "y", {"k = 3": points, "training rows, k = 3": points}))
    assert by_k == {"k = 3": "var(--c3)", "training rows, k = 3": "var(--trained)"}
    assert strokes(Lines("t", "x", "y", {"loss": points})) == {"loss": "var(--c8)"}
    assert 'fill="var(--c3)"' in svg(Bars("t", {"depth 3": 1.0}))
    assert svg(Bars("t", {"target": 1.0, "draft": 2.0})).count('fill="var(--c8)"') == 2
    runs = strokes(Lines("t", "x", "y", {"a": [], "b": points, "c": points}))
    bars = svg(Bars("t", {"a": math.nan, "b": 1.0, "c": 2.0}, by_series=True))
    assert list(runs.values()) == re.findall(r'<rect[^>]* fill="([^"]*)"', bars) == ["var(--c2)", "var(--c3)"]


def test_marks_stand_where_something_begins() -> None:
    chart = Lines("t", "step", "y", {"a": [(0, 1.0), (100, 2.0)]}, marks=[0, 25, 50, 100], marked="an epoch begins")
    drawn = svg(chart)
    assert drawn.count("stroke-dasharray") == 2  # those at the ends are no lines of their own
    assert "an epoch begins" in drawn
    many = svg(Lines("t", "step", "y", {"a": [(0, 1.0), (1000, 2.0)]}, marks=range(1, 1000), marked="an epoch begins"))
    assert many.count("stroke-dasharray") <= 20
    assert "some of" in many


def test_numbers_of_an_axis_have_equally_many_decimals() -> None:
    assert axis_texts([1.0, 1.05, 1.1]) == ["1.00", "1.05", "1.10"]
    assert axis_texts([0.0, 20.0, 1500.0]) == ["0", "20", "1,500"]
    assert axis_texts([0.0, 5e-4, 1e-3]) == ["0", "5e-4", "0.001"]
