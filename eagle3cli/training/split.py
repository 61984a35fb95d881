"""How many ranks should hold the target: which side of a run waits, and what another split would change.

With T ranks for the target, in replicas of t, and D for the draft, both sides work at once, so that a step takes

    max(a t / T, b / D)

where a are a replica's seconds for the batch of a step and b the draft's seconds for it on one rank: a measured run and
a forecast differ in where these two come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

WORTH = 0.05
"""Share of the time that another split must save to be proposed."""


@dataclass(frozen=True)
class Work:
    """What a step needs of both sides."""

    replica_seconds: float
    """Of one replica, for the batch of a step."""
    draft_seconds: float
    """Of one draft rank, for the same."""
    tp_size: int = 1
    """Ranks of a replica."""

    def step_seconds(self, targets: int, drafts: int) -> float:
        """A step with so many ranks on each side."""
        return max(self.replica_seconds * self.tp_size / targets, self.draft_seconds / drafts)

    def best_targets(self, ranks: int, most_drafts: int) -> int:
        """How many of ``ranks`` should hold the target; more than ``most_drafts`` others would have no rows."""
        choices = range(self.tp_size, ranks, self.tp_size)
        return min(
            choices, key=lambda targets: (self.step_seconds(targets, min(ranks - targets, most_drafts)), targets)
        )


@dataclass(frozen=True)
class Split:
    """How a run, or a plan of one, divides its ranks, and what that leaves unused."""

    work: Work
    targets: int
    drafts: int
    draft_waits: float
    """Share of the time in which the draft's ranks wait for states."""
    target_waits: float
    """Share of the time in which the target's ranks have nothing to run."""
    most_drafts: int
    """Draft ranks that would have rows."""

    @property
    def proposal(self) -> int | None:
        """A better number of ranks for the target; None where this one is about the best."""
        best = self.work.best_targets(self.targets + self.drafts, self.most_drafts)
        return best if self.saved(best) > WORTH else None

    def saved(self, targets: int) -> float:
        """Share of the time that another number of ranks for the target would save."""
        ranks = self.targets + self.drafts
        other = self.work.step_seconds(targets, min(ranks - targets, self.most_drafts))
        return 1 - other / self.work.step_seconds(self.targets, min(self.drafts, self.most_drafts))

    def line(self) -> str:
        """For people."""
        processes = "1 process" if self.targets == 1 else f"{self.targets} processes"
        waits = f"the draft waits for states {self.draft_waits:.0%} of the time, the target for work"
        text = f"{processes} for the target, {self.drafts} for the draft: {waits} {self.target_waits:.0%}"
        best = self.proposal
        if best is None:
            return f"{text}; no other split of the {self.targets + self.drafts} would be much faster"
        return f"{text}; --target-gpus {best} would take about {self.saved(best):.0%} less time"

    def numbers(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "target_ranks": self.targets,
            "draft_ranks": self.drafts,
            "draft_waits": round(self.draft_waits, 4),
            "target_waits": round(self.target_waits, 4),
            "proposed_target_gpus": self.proposal,
            "text": self.line(),
        }


def planned_split(work: Work, targets: int, drafts: int, most_drafts: int) -> Split:
    """The split of a run that has not begun."""
    step = work.step_seconds(targets, drafts)
    draft_waits = 1 - work.draft_seconds / drafts / step
    target_waits = 1 - work.replica_seconds * work.tp_size / targets / step
    return Split(work, targets, drafts, draft_waits, target_waits, most_drafts)
