"""The report of a training run, from the files of its folder."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from eagle3cli.console.report import html, markdown
from eagle3cli.runs.folder import read_run
from eagle3cli.runs.page import PART_NAMES, breakdown, cost, tokens_per_s, training_page
from eagle3cli.runs.settings_used import differing_settings
from eagle3cli.runs.state import State, state_of
from eagle3cli.training.timers import PARTS
from tests.runs.made import eval_line, make_run, step_line


def test_the_page_tells_the_run(tmp_path: Path) -> None:
    page = training_page(read_run(make_run(tmp_path / "run")))
    assert page.summary.startswith("Finished: step 400 of 400 after 6:40. Best held-out acceptance length 2.")
    assert page.summary.endswith("(k = 7) at step 400.")
    assert dict(page.tiles)["tokens per second"] == "1,000"
    assert dict(page.tiles)["peak memory"] == "2.00 GB"
    text, drawn = markdown(page), html(page)
    for said in (
        "| train | 90 | 9,000 | 4,500 | 50% | 2 | 1 | 3 |",
        "train: 3 x <b>no messages</b>",
        "train: 4 repaired: a role renamed",
        "32,000 of 128,256 tokens; it covers 97.0% of the reply tokens trained on and 96.0% of those of eval",
        "| evaluation | 0:12 |",
        "| train.learning_rate | 0.001 |",
        "warning: <u>odd</u>",
    ):
        assert said in text, said
    assert drawn.count("<svg") == 13
    assert drawn.count("<polyline") == 4 + 4 + 1 + 7 + 7 + 1 + 1 + 1 + 1
    assert '<span class="t">Hello &lt;script&gt;</span>' in drawn
    assert '<span class="u">&lt;user&gt;Hi &amp; bye</span>' in drawn
    assert "<b>no messages" not in drawn


def test_acceptance_by_context_length_is_shown_and_its_fall_told(tmp_path: Path) -> None:
    page = training_page(read_run(make_run(tmp_path / "run")))
    section = next(section for section in page.sections if section.title == "Acceptance length")
    assert any(chart.title == "Acceptance length by length of the context" for chart in section.charts)
    assert "1.90 at 0-511 tokens, 1.50 at 1024-2047 (21% less)" in section.text[-1]


def test_a_page_of_a_run_that_goes_on_says_when_it_was_written(tmp_path: Path) -> None:
    page = training_page(read_run(make_run(tmp_path / "mine" / "train", steps=50, state="running")))
    assert page.title == "Training run mine/train"
    assert re.search(r"No evaluation yet\. Written 20\d\d-\d\d-\d\d \d\d:\d\d:\d\d\.$", page.summary)


@pytest.mark.slow
def test_a_long_run_has_a_small_page(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    lines = [json.dumps(step_line(step, float(step))) for step in range(1, 20_001)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    assert len(html(training_page(read_run(folder)))) < 250_000


def test_the_breakdown_weighs_lines_by_their_time() -> None:
    events = [{"seconds": 1.0, "time": {"a": 1.0}}, {"seconds": 4.0, "time": {"a": 0.2, "b": 0.8}}]
    assert breakdown(events) == pytest.approx({"b": 0.6, "a": 0.4})
    assert breakdown([{"seconds": 1.0}]) == {}
    assert {*PARTS, "other"} == PART_NAMES.keys()  # each has a name for people


def test_cost_on_gpus_counts_every_one(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run"))
    assert dict(cost(run))["processor hours, evaluation included"] == 0.1
    assert dict(cost(run))["tokens trained through"] == 400_000
    run.metadata |= {"device": "cuda", "processes": 9}
    assert dict(cost(run))["GPU hours"] == pytest.approx(9 * 412 / 3600, abs=1e-3)


OLD = ("loss", "depth_losses", "accuracy", "seconds", "tokens_per_s", "step", "event")


def test_lines_of_an_earlier_version_are_shown_as_far_as_they_go(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    steps = [{name: line[name] for name in OLD} for line in lines if line["event"] == "step"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in steps))
    for name in ("run.json", "settings.toml", "log.txt"):
        (folder / name).unlink()
    run = read_run(folder)
    assert tokens_per_s(run) == 1000.0
    assert html(training_page(run)).count("<svg") == 4


@pytest.mark.parametrize("text", ["", "not json", "[1]\n3\nnull\n", '{"event": "step"}\n', '{"event": "st'])
def test_whatever_stands_in_the_files_a_page_is_made(tmp_path: Path, text: str) -> None:
    for name in ("metrics.jsonl", "run.json", "settings.toml", "log.txt"):
        (tmp_path / name).write_text(text)
    page = training_page(read_run(tmp_path))
    assert "step 0 after 0:00" in page.summary
    assert html(page).startswith("<!doctype html>")


@pytest.mark.parametrize(
    "metadata", [{"samples": [{"x": 1}]}, {"samples": 3}, {"sessions": [3]}, {"sessions": {"a": 1}}]
)
def test_a_run_json_of_somebody_else_does_no_harm(tmp_path: Path, metadata: dict[str, Any]) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "run.json").write_text(json.dumps(metadata))
    assert "<polyline" in html(training_page(read_run(folder)))


def state(folder: Path) -> State:
    return state_of(folder, read_run(folder).metadata)


def test_the_state_of_a_run_is_told_by_its_process(tmp_path: Path) -> None:
    assert state(make_run(tmp_path / "on", state="running")).name == "running"
    assert state(make_run(tmp_path / "stopped", state="stopped")).ended
    killed = make_run(tmp_path / "killed", state="running")
    metadata = read_run(killed).metadata
    for changed in ({"pid": 2**22 + 1}, {"started": "1"}):
        metadata["sessions"][0] |= changed
        ended = state_of(killed, metadata)
        assert (ended.name, "no sign of life since 20" in ended.message) == ("dead", True)


def test_a_run_on_another_machine_is_judged_by_its_files(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", state="running")
    metadata = read_run(folder).metadata
    metadata["sessions"][0]["host"] = "elsewhere"
    assert state_of(folder, metadata).name == "running"
    assert state_of(folder, {}).message == "being set up"
    for path in folder.iterdir():
        os.utime(path, (time.time() - 3600,) * 2)
    assert state_of(folder, metadata).name == "dead"
    assert 3590 < state_of(folder, metadata).idle_seconds < 3700
    assert state_of(folder, {}).name == "unknown"


def test_settings_that_differ_between_runs() -> None:
    a, b = {"train": {"batch_size": 4, "seed": 0}}, {"train": {"batch_size": 8}}
    assert differing_settings([a, b]) == [("train.batch_size", ["4", "8"])]  # the seed of b is the default, 0


def test_curves_begin_with_the_untrained_draft_and_mark_epochs(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    history = folder / "metrics.jsonl"
    start = {**eval_line(0, 0.0, 1.0), "event": "start", "loss": 9.0, "training_acceptance_length": [1.0] * 7}
    history.write_text(json.dumps(start) + "\n" + history.read_text())
    about = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**about, "steps_per_epoch": 150, "command": "eagle3 train --x"}))
    run = read_run(folder)
    assert (run.curve[0]["step"], run.measured_curve[0]["step"], len(run.measured)) == (0, 0, 4)
    assert run.best is not None
    assert run.best["step"] == 400  # the untrained draft is none to keep
    assert run.epoch_starts == [150, 300]
    text = html(training_page(run))
    assert "an epoch begins" in text
    assert 'data-name="training rows, k = 7"' in text
    assert "eagle3 train --x" in text
