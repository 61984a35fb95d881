"""What decides a run's numbers: what may change when a run goes on, and what makes it another run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from eagle3cli.settings.tables import Settings
from eagle3cli.settings.training import TrainSettings
from eagle3cli.training.checkpoint.state import TrainState
from eagle3cli.training.fingerprint import Continuation, run_fingerprint
from eagle3cli.training.fingerprint import go_on as decide
from tests.failing import fails


def test_settings_that_came_later_leave_the_hash_of_runs_without_them() -> None:
    identity = {"start": "target", "draft": {"layers": 1}, "data": {"key": "rows"}, "target": "weights"}
    assert run_fingerprint(TrainSettings(), identity) == "222806397213df63"
    for changed in ({"echo_factor": 2}, {"keep_states": True}, {"learning_rate": 0.5}):
        assert run_fingerprint(TrainSettings(**changed), identity) != "222806397213df63"


BEFORE: dict[str, Any] = {
    "train": {"ttt_length": 3},
    "start": "target",
    "draft": {"num_hidden_layers": 1},
    "target": "weights",
    "data": {"key": "rows", "rows": 10, "caches": []},
    "held_out": "eval rows",
}


def go_on(run: Path, now: dict[str, Any]) -> Continuation:
    return decide(run, TrainState(step=4, identity=BEFORE), Settings(), {**BEFORE, **now})


def test_the_same_run_goes_on_without_a_word(tmp_path: Path) -> None:
    assert go_on(tmp_path, {}) == Continuation()


@pytest.mark.parametrize(
    "now",
    [
        {"train": {"ttt_length": 5}},
        {"draft": {"num_hidden_layers": 2}},
        {"start": "random"},
        {"target": "other weights"},
        {"data": {"key": "fewer", "rows": 9, "caches": []}},
    ],
    ids=lambda now: next(iter(now)),
)
def test_another_way_to_train_is_another_run(tmp_path: Path, now: dict[str, Any]) -> None:
    with fails("made-differently", tmp_path):
        go_on(tmp_path, now)


def test_settings_at_their_defaults_are_those_that_a_checkpoint_does_not_name(tmp_path: Path) -> None:
    assert go_on(tmp_path, {"train": {"ttt_length": 3, "optimizer": TrainSettings().optimizer}}) == Continuation()
    with fails("made-differently", "train.optimizer"):
        go_on(tmp_path, {"train": {"ttt_length": 3, "optimizer": "another"}})


def test_more_rows_that_nobody_can_compare_are_told_and_others_are_measured_anew(tmp_path: Path) -> None:
    more = go_on(tmp_path, {"data": {"key": "more", "rows": 12, "caches": []}})
    assert (len(more.notes), more.same_measure) == (1, True)
    unknown = go_on(tmp_path, {"data": None})
    assert (len(unknown.notes), unknown.same_measure) == (1, True)
    for now in ({"held_out": "other rows"}, {"best_by": ["sampled", 1.0, 0]}):
        found = go_on(tmp_path, now)
        assert (len(found.notes), found.same_measure) == (1, False)
    assert go_on(tmp_path, {"held_out": None}).same_measure
