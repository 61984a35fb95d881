"""Files of a run that hold anything at all: pages and screens are made of what is sound in them."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.console.report import html
from eagle3cli.console.screen import line, lines
from eagle3cli.runs.compare import ComparedRun, comparison_page, final_numbers
from eagle3cli.runs.events import LISTS, MAPS, NUMBERS
from eagle3cli.runs.folder import METADATA_TYPES, read_run
from eagle3cli.runs.page import training_page
from eagle3cli.runs.state import state_of
from eagle3cli.runs.view import RunFollower, training_view
from tests.runs.made import eval_line, step_line

ANYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats(allow_subnormal=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.dictionaries(st.sampled_from([*NUMBERS, *LISTS, *MAPS]), ANYTHING, max_size=6)
NAMES = st.sampled_from([*METADATA_TYPES, "other"])


@pytest.mark.slow
@given(st.lists(st.tuples(st.booleans(), FIELDS), max_size=6), st.dictionaries(NAMES, ANYTHING, max_size=6))
def test_any_values_in_the_right_places_do_no_harm(changed: list[tuple[bool, Any]], metadata: dict[str, Any]) -> None:
    events = []
    for number, (is_eval, fields) in enumerate(changed):
        usual = eval_line(number, 1.0 * number, 2.0) if is_eval else step_line(number, 1.0 * number)
        events.append(usual | fields)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
        (folder / "run.json").write_text(json.dumps(metadata))
        run = read_run(folder)
        assert html(training_page(run)).startswith("<!doctype html>")
        html(comparison_page([ComparedRun("a", run), ComparedRun("b", run)]))
        json.dumps(final_numbers(run), default=str)
        view = training_view(RunFollower(folder).read(), state_of(folder, run.metadata))
        assert lines(view)
        assert line(view)


@given(st.text(max_size=60) | ANYTHING.map(json.dumps))
def test_any_text_for_a_file_does_no_harm(text: str) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file in ("metrics.jsonl", "run.json", "settings.toml", "log.txt"):
            (folder / file).write_text(text, encoding="utf-8", errors="replace")
        run = read_run(folder)
        html(training_page(run))
        lines(training_view(run, state_of(folder, run.metadata)))
