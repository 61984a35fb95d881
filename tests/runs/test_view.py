"""What a screen shows of a run, and how its files are follower."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from eagle3cli.console.screen import line, lines, rows_of, spark
from eagle3cli.runs.folder import read_run
from eagle3cli.runs.state import FINISHED, RUNNING, State
from eagle3cli.runs.view import MOST_LINES, RunFollower, add_events, newest_checkpoint, time_left, training_view
from eagle3cli.runtime.report import Silent
from eagle3cli.training.history import history_writer
from tests.runs.made import eval_line, make_run, step_line

ON = State(RUNNING, RUNNING, 3.0)


def test_small_charts_show_the_shape() -> None:
    assert spark([0, 1, 2, 3, 4, 5, 6, 7]) == "▁▂▃▄▅▆▇█"
    assert spark([5, 5, 5]) == "▁▁▁"
    assert spark([1]) == spark([]) == ""
    long = spark([float(i) for i in range(10_000)])
    assert len(long) == 32
    assert list(long) == sorted(long)


def test_the_view_holds_what_a_person_wants_to_know(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=200, state="running")
    for name in ("epoch_0_step_100", "epoch_1_step_200", ".epoch_2_step_300.tmp-1", "epoch_x"):
        (folder / "checkpoints" / name).mkdir(parents=True)
    view = training_view(read_run(folder), ON)
    assert (view.step, view.total, view.left, view.checkpoint) == (200, 400, pytest.approx(200.0), 200)
    parts = {"target": 0.5, "forward": 0.25, "backward": 0.2, "optimiser": 0.03, "other": 0.02}
    assert view.time == pytest.approx(parts)
    text = "\n".join(lines(view))
    step = "200 of 400 (50%), 3:20 trained, about 3:20 left"
    for said in (step, "best 1.7", "(k=7)", "1,000", "2.00 GB", "0:03 ago"):
        assert said in text, said
    assert "████████████░░░░░░░░░░░░" in text
    assert line(view).startswith(f"{folder}: 200/400 steps, 3:20 left, loss 4.6")
    assert training_view(read_run(folder), State(FINISHED, FINISHED, 3.0)).left is None


def test_a_run_that_begins_has_little_to_show(tmp_path: Path) -> None:
    log = ("eval: begins", "loading x")
    (tmp_path / "log.txt").write_text("".join(f"2026-11-25 10:00:00+00:00 {told}\n" for told in log))
    view = training_view(read_run(tmp_path), ON)
    assert [" ".join(row.split()) for row in lines(view)] == [
        f"run {tmp_path}, running",
        "log 2026-11-25 10:00:00+00:00 loading x",
        "last written 0:03 ago",
    ]


def test_numbers_that_are_none_do_no_harm(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=50)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(step_line(60, 60.0) | {"loss": math.nan, "tokens_per_s": math.inf}) + "\n")
    view = training_view(read_run(folder), ON)
    assert len(view.losses) == 5
    assert "nan" in "\n".join(lines(view))


def test_time_left_by_steps_budget_or_the_sooner(tmp_path: Path) -> None:
    run = read_run(make_run(tmp_path / "run", steps=100))
    assert time_left(run) == pytest.approx(300.0)
    run.metadata["budget_seconds"] = 150.0
    assert time_left(run) == pytest.approx(50.0)
    run.metadata["total_steps"] = None
    assert ("time left", "about 0:50", "") in rows_of(
        training_view(run, ON), whole=False
    )  # a bar without a total tells none
    run.metadata["budget_seconds"] = None
    assert time_left(run) is None


def test_files_are_read_on_where_they_were_left(tmp_path: Path) -> None:
    follower = RunFollower(tmp_path)
    assert follower.read().steps == []
    first, second = json.dumps(step_line(10, 10.0)), json.dumps(step_line(20, 20.0))
    path = tmp_path / "metrics.jsonl"
    path.write_text(first + "\n" + second[:40])
    assert [event["step"] for event in follower.read().steps] == [10]
    with path.open("a") as file:
        file.write(second[40:] + "\n" + json.dumps(eval_line(20, 20.0, 2.0)) + "\n")
    assert [event["step"] for event in follower.read().steps] == [10, 20]
    assert len(follower.read().evals) == 1
    listen = history_writer(tmp_path, 10, Silent())  # a session that goes on from step 10
    assert [event["step"] for event in follower.read().steps] == [10]
    listen("step", {name: value for name, value in step_line(15, 15.0).items() if name != "event"})
    assert [event["step"] for event in follower.read().steps] == [10, 15]
    assert follower.read().evals == []


def test_a_long_run_is_kept_thinned(tmp_path: Path) -> None:
    follower = RunFollower(tmp_path)
    for step in range(1, 3 * MOST_LINES):
        add_events(follower.run, step_line(step, float(step)))
    kept = [event["step"] for event in follower.run.steps]
    assert len(kept) <= MOST_LINES
    assert kept[0] == 1
    assert kept[-20:] == list(range(3 * MOST_LINES - 20, 3 * MOST_LINES))


def test_whole_checkpoints_alone_count(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
