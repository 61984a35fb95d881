"""Reports are complete pages, escape what they show, and draw what they are given."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.console.report import Page, Section, _ticks, html, line_chart, markdown, markdown_table

# training flushes subnormal numbers to zero in this process, and hypothesis refuses to draw them then
NUMBERS = st.floats(-1e6, 1e6, allow_nan=False, allow_subnormal=False)


def test_nothing_of_a_row_is_taken_for_markup() -> None:
    page = Page("<b>t</b>", "a & b", [Section("s", ["<script>"], ["c"], [["<img>"]])])
    text = html(page)
    assert "<script>" not in text
    assert "<img>" not in text
    assert "&lt;img&gt;" in text
    assert "http" not in text


def test_markdown_tables_align_numbers_and_keep_bars_apart() -> None:
    table = markdown_table(["name", "value"], [["a|b", 1.5], ["c", None]])
    assert table.splitlines() == ["| name | value |", "| --- | ---: |", "| a\\|b | 1.500 |", "| c | - |"]
    assert "# t\n\nsum\n\n## s\n\nwords" in markdown(Page("t", "sum", [Section("s", ["words"]), Section("empty")]))


def test_a_chart_has_a_line_per_series() -> None:
    svg = line_chart({"loss": [(0, 2.0), (10, 1.0)], "other <": [(0, 1.5), (10, 1.2)], "none": []}, "step", "loss")
    root = ElementTree.fromstring(svg)
    assert len(root.findall("polyline")) == 2
    assert "other <" in [element.text for element in root.findall("text")]
    assert line_chart({"none": []}, "x", "y") == ""


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=20))
def test_every_point_is_inside_the_chart(points: list[tuple[float, float]]) -> None:
    svg = line_chart({"a": points}, "x", "y")
    found = re.search(r'points="([^"]*)"', svg)
    assert found is not None
    for pair in found[1].split():
        x, y = map(float, pair.split(","))
        assert 0 <= x <= 640
        assert 0 <= y <= 260


@given(NUMBERS, NUMBERS)
def test_ticks_reach_around_the_values(a: float, b: float) -> None:
    ticks = _ticks(min(a, b), max(a, b))
    hairline = 1e-6 * (1 + abs(a - b))
    assert ticks[0] <= min(a, b) + hairline
    assert ticks[-1] >= max(a, b) - hairline
    assert 2 <= len(ticks) <= 8
