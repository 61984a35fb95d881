"""Which split of a job's ranks is the best one, and what it says of the others."""

from __future__ import annotations

import pytest

from eagle3cli.training.split import Work, planned_split


def test_the_slower_side_decides_and_the_other_waits() -> None:
    split = planned_split(Work(replica_seconds=6.0, draft_seconds=4.0), targets=1, drafts=4, most_drafts=64)
    assert split.work.step_seconds(1, 4) == 6.0
    assert (split.draft_waits, split.target_waits) == (pytest.approx(1 - 1 / 6), 0.0)
    assert split.proposal == 3  # 2 s, as the draft on two ranks
    assert split.saved(3) == pytest.approx(1 - 2 / 6)
    assert "--target-gpus 3 would take about 67% less time" in split.line()
    best = planned_split(split.work, targets=3, drafts=2, most_drafts=64)
    assert best.proposal is None
    assert "no other split of the 5" in best.line()


def test_proposals_are_whole_targets_and_leave_no_rank_without_rows() -> None:
    spread = Work(replica_seconds=8.0, draft_seconds=1.0, tp_size=4)
    assert planned_split(spread, targets=4, drafts=8, most_drafts=64).proposal == 8
    few = Work(replica_seconds=1.0, draft_seconds=8.0)
    assert few.best_targets(12, most_drafts=64) == 2
    # Two rows a step keep two draft ranks busy: of the others all might hold the target, one is as good as ten.
    assert few.best_targets(12, most_drafts=2) == 1
    assert few.step_seconds(1, 2) == 4.0
