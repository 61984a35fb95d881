"""The benchmark's table and page."""

from __future__ import annotations

from typing import Any

from eagle3cli.console.benchmark import COLUMNS, page, table_row
from eagle3cli.console.report import html, markdown


def row(config: str, **more: Any) -> dict[str, Any]:
    steps = int(config.split(",")[1])
    times = {"mean": 5.0, "p50": 4.0, "p99": 9.0}
    told = {"task": "t:2", "config": config, "temperature": 0.0, "steps": steps, "tokens_per_s": 100.0}
    return {**told, "tokens_per_s_spread": None, "ttft_ms": times, "inter_token_ms": times, "gap_ms": None, **more}


DRAFT: dict[str, Any] = {
    "speedup": 1.4, "acceptance_length": 2.5, "accepted_per_position": [0.9, 0.6], "compared": 4, "identical": 3,
    "identical_share": 0.75, "differences_at_ties": 1, "tie_limit": 0.25, "accuracy": 0.5, "accuracy_baseline": 0.25,
}  # fmt: skip


def test_a_row_as_people_read_it() -> None:
    assert len(table_row(row("1,0,0,0"))) == len(COLUMNS)
    told = dict(zip(COLUMNS, table_row(row("1,2,1,3", **DRAFT)), strict=True))
    assert told["speed-up"] == "1.40x"
    assert told["identical"] == "3/4"
    assert told["accuracy"] == "50.0% (without 25.0%)"
    assert told["first token ms"] == "4.0"
    alone = dict(zip(COLUMNS, table_row(row("1,2,1,3")), strict=True))
    assert alone["speed-up"] is None  # no baseline, no speed-up


def test_the_page_says_what_is_best_and_hides_nothing() -> None:
    found = page([row("1,0,0,0"), row("1,2,1,3", **DRAFT)], "sglang", "M<x>")
    assert "1.40x (t:2, 1,2,1,3)" in found.summary
    text, whole = markdown(found), html(found)
    assert "less than 0.25 in log-probability" in text
    assert whole.count("<svg") == 4
    assert "M&lt;x&gt;" in whole
    slow = page([row("1,0,0,0"), row("1,2,1,3", **{**DRAFT, "speedup": 0.8})], "local", "M")
    assert "No draft was faster" in slow.summary
