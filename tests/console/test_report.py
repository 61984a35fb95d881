"""Reports are complete pages that load nothing and escape what they show."""

from __future__ import annotations

import base64
import hashlib
import re

from eagle3cli.console.chart import Lines
from eagle3cli.console.report import Page, Section, html, markdown, markdown_table, texts_of
from eagle3cli.console.samples import html_samples, sample_of
from eagle3cli.data.inspect.show import Piece, RowView


def test_nothing_of_a_row_is_taken_for_markup() -> None:
    evil = "<img src='http://x/'>\"</script><script>alert(1)</script>"
    chart = Lines(evil, evil, evil, {evil: [(0, 1), (1, 2)], "b": [(0, 1)]})
    sample = {"title": evil, "edges": [evil], "before": 0, "behind": 2, "runs": [[evil, evil, True, False]]}
    section = Section(evil, [evil], [evil], [[evil]], [chart], html_samples([sample]))
    text = html(Page(evil, evil, [section], [(evil, evil)]))
    assert text.count("<script>") == text.count("</script>") == 1
    assert "<img" not in text
    assert text.count("alert(1)") >= 10
    assert "http" not in text.replace("http://x/", "").replace("http-equiv", "")


def test_the_pages_own_script_is_the_only_one_it_allows() -> None:
    text = html(Page("t", "s", [Section("c", charts=[Lines("c", "x", "y", {"a": [(0, 1), (1, 2)]})])]))
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    policy = re.search(r"script-src 'sha256-([^']*)'", text)
    assert script is not None
    assert policy is not None
    assert base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode() == policy[1]
    assert "default-src 'none'" in text


def test_sections_without_content_are_left_out() -> None:
    text = html(Page("t", "s", [Section("nothing"), Section("no points", charts=[Lines("c", "x", "y", {"a": []})])]))
    assert "<h2>" not in text


def test_control_characters_of_a_row_are_shown_not_sent() -> None:
    row = {"title": "t", "edges": [], "before": 3, "behind": 0, "runs": [["user", "a\x1b[2J\u202eb", False, True]]}
    text = html_samples([row])
    assert "\\x1b" in text
    assert "\\u202e" in text
    assert "3 pieces before" in text
    assert "unknown to the draft" not in text


def test_a_long_row_is_kept_around_its_first_reply() -> None:
    pieces = [Piece((i,), f"w{i} ", 500 <= i < 1300, True, "user") for i in range(2000)]
    found = sample_of(RowView(1, "a", 1, 2000, 800, False, 0, pieces=tuple(pieces)))
    assert (found["before"], found["behind"]) == (350, 1050)
    assert [len(text.split()) for _, text, _, _ in found["runs"]] == [150, 450]


def test_markdown_tables_align_numbers_and_keep_bars_apart() -> None:
    table = markdown_table(["name", "value"], [["a|b", 1.5], ["c", None]])
    assert table.splitlines() == ["| name | value |", "| --- | ---: |", "| a\\|b | 1.500 |", "| c | - |"]
    assert "# t\n\nsum\n\n## s\n\nwords" in markdown(Page("t", "sum", [Section("s", ["words"]), Section("empty")]))


def test_numbers_of_a_column_have_equally_many_decimals() -> None:
    assert texts_of([("a", 14.2, 3), ("b", 9.0, None), ("c", 123.456, 4)]) == [
        ["a", "14.2", "3"],
        ["b", "9.0", "-"],
        ["c", "123.5", "4"],
    ]
    assert [row[0] for row in texts_of([(1.0,), (0.12345,)])] == ["1.000", "0.123"]


def test_a_warning_stands_in_the_box_of_its_chart() -> None:
    chart = Lines("Loss", "x", "y", {"a": [(0, 1), (1, 2)]}, note="compare <acceptance>")
    text = html(Page("t", "s", [Section("c", charts=[chart])]))
    assert '<figcaption>Loss</figcaption><p class="warn">compare &lt;acceptance&gt;</p><svg' in text
