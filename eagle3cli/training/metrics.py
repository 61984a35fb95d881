"""Losses and accuracies of training steps, summed until a log line reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from eagle3cli.runtime.devices import HostCopy, to_host
from eagle3cli.runtime.distributed import Ranks
from eagle3cli.training.ttt.loss import LossSums
from eagle3cli.training.ttt.unroll import PositionPlan

SAVED = {
    "before": "earlier",
    "divided_by": "divisor",
    "kept": "with_loss",
    "counted": "counted_T",
    "kept_T": "with_loss_T",
}
"""What a checkpoint holds of them: its key, and the field here."""


@dataclass
class Metrics:
    """Sums over micro batches, of one step or of all since the last log line.

    Tensors stay on the device until they are read, so that no step waits for them.
    """

    losses: list[Tensor] = field(default_factory=list)
    """Weighted sums over positions."""
    sums: list[LossSums] = field(default_factory=list)
    divisor: float = 0.0
    """What the losses are divided by: positions with loss at step 0 of the unroll."""
    with_loss: int = 0
    counted_T: list[int] = field(default_factory=list)
    """Positions whose accuracy counts, by step of the unroll."""
    with_loss_T: list[int] = field(default_factory=list)
    """Positions that carried loss, by step of the unroll."""
    uncounted: list[HostCopy] = field(default_factory=list)
    """Such numbers ``[T]`` of micro batches, on their way from the device."""
    earlier: list[float] = field(default_factory=list)
    """Totals over all ranks of what an earlier session had counted."""
    tokens: int = 0

    @classmethod
    def restored(cls, saved: dict[str, Any]) -> Metrics:
        """What :meth:`saved` gave, to go on from."""
        return cls(**{SAVED[key]: value for key, value in saved.items()})

    def add_micro_batch(self, loss: Tensor, sums: LossSums, plan: PositionPlan) -> None:
        """Add a micro batch of this rank."""
        self.losses.append(loss)
        self.sums.append(sums)
        self.counted_T = _added(self.counted_T, [step.counted for step in plan.steps])
        if plan.taught_N is None:
            self.with_loss_T = _added(self.with_loss_T, [len(step.loss_L) for step in plan.steps])
        else:
            assert sums.with_loss_T is not None
            self.uncounted.append(to_host(sums.with_loss_T))

    def add_step(self, step: Metrics) -> None:
        """Add a training step."""
        self.losses += step.losses
        self.sums += step.sums
        self.divisor += step.divisor
        self.with_loss += step.with_loss
        self.counted_T = _added(self.counted_T, step.counted_T)
        self.with_loss_T = _added(self.with_loss_T, step.with_loss_T)
        self.tokens += step.tokens

    def all_reduce_counts(self, ranks: Ranks, ttt_length: int) -> None:
        """Make the counts those of all ranks; losses and their sums stay this rank's."""
        none = [0] * ttt_length
        for counts in self.uncounted:
            self.with_loss_T = _added(self.with_loss_T, [int(count) for count in counts.read().tolist()])
        self.uncounted = []
        mine = [self.tokens, *(self.counted_T or none), *(self.with_loss_T or none)]
        tokens, *by_step = map(int, ranks.all_reduce_sum(mine))
        self.tokens = tokens
        self.counted_T = by_step[:ttt_length]
        self.with_loss_T = by_step[ttt_length:]
        self.with_loss = self.with_loss_T[0]

    def totals(
        self, ranks: Ranks, ttt_length: int, more: Sequence[float] = ()
    ) -> tuple[float, list[float], list[float], list[float]]:
        """Over all ranks: the loss, cross-entropies and right answers by step of the unroll, as sums over positions.

        The sums of ``more``, numbers of this rank, come along by the same message.
        """
        mine = [0.0] * (1 + 2 * ttt_length)
        if self.losses:
            loss_T = torch.stack([sums.loss_T for sums in self.sums]).sum(0)
            correct_T = torch.stack([sums.correct_T for sums in self.sums]).sum(0)
            mine = [float(torch.stack(self.losses).sum()), *loss_T.tolist(), *correct_T.tolist()]
        if ranks.is_main and self.earlier:
            mine = [a + b for a, b in zip(mine, self.earlier, strict=True)]
        total, *by_step = ranks.all_reduce_sum([*mine, *more])
        return total, by_step[:ttt_length], by_step[ttt_length : 2 * ttt_length], by_step[2 * ttt_length :]

    def saved(self, ranks: Ranks, ttt_length: int) -> dict[str, Any]:
        """What a checkpoint holds of the steps that no log line has shown yet, for :meth:`restored`."""
        if not self.with_loss:
            return {}
        total, loss_T, correct_T, _ = self.totals(ranks, ttt_length)
        values = {key: getattr(self, name) for key, name in SAVED.items()}
        return values | {"before": [total, *loss_T, *correct_T]}


def _added(left: list[int], right: list[int]) -> list[int]:
    return [a + b for a, b in zip_longest(left, right, fillvalue=0)]
