"""What decides a run's numbers, hashed: checkpoints of earlier versions tell no more, and must be found again."""

from __future__ import annotations

from eagle3cli.settings.training import TrainSettings
from eagle3cli.training.fingerprint import run_fingerprint


def test_settings_that_came_later_leave_the_hash_of_runs_without_them() -> None:
    identity = {"start": "target", "draft": {"layers": 1}, "data": {"key": "rows"}, "target": "weights"}
    assert run_fingerprint(TrainSettings(), identity) == "222806397213df63"
    for changed in ({"echo_factor": 2}, {"keep_states": True}, {"learning_rate": 0.5}):
        assert run_fingerprint(TrainSettings(**changed), identity) != "222806397213df63"
