"""What training counts between two log lines."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from eagle3cli.runtime.distributed import Ranks
from eagle3cli.training.ttt.loss import DepthSums
from eagle3cli.training.ttt.positions import RowPlan


@dataclass
class Window:
    """Sums since the last log line; tensors stay on the device until they are read."""

    loss: list[Tensor] = field(default_factory=list)
    """Weighted sums over rows."""
    sums: list[DepthSums] = field(default_factory=list)
    divided_by: float = 0.0
    kept: int = 0
    counted: list[int] = field(default_factory=list)
    kept_T: list[int] = field(default_factory=list)
    """Rows that carried loss, by depth."""
    before: list[float] = field(default_factory=list)
    """Totals over all ranks of what an earlier session had counted."""
    tokens: int = 0
    began: float = 0.0
    """Training seconds of the run when the window opened."""

    def count(self, loss: Tensor, sums: DepthSums, plan: RowPlan) -> None:
        """Add a micro batch."""
        self.loss.append(loss)
        self.sums.append(sums)
        self.kept += plan.kept
        self.counted = _added(self.counted, [depth.counted for depth in plan.depths])
        self.kept_T = _added(self.kept_T, [len(depth.kept_r) for depth in plan.depths])

    def add(self, step: Window) -> None:
        """Add a step."""
        self.loss += step.loss
        self.sums += step.sums
        self.divided_by += step.divided_by
        self.kept += step.kept
        self.counted = _added(self.counted, step.counted)
        self.kept_T = _added(self.kept_T, step.kept_T)
        self.tokens += step.tokens

    def add_up(self, ranks: Ranks, depths: int) -> None:
        """Make the counts those of all ranks; losses and their sums stay this rank's."""
        none = [0] * depths
        kept, tokens, *by_depth = ranks.all_reduce_sum(
            [self.kept, self.tokens, *(self.counted or none), *(self.kept_T or none)]
        )
        self.kept, self.tokens = int(kept), int(tokens)
        self.counted, self.kept_T = [int(n) for n in by_depth[:depths]], [int(n) for n in by_depth[depths:]]

    def totals(
        self, ranks: Ranks, depths: int, more: list[float]
    ) -> tuple[float, list[float], list[float], list[float]]:
        """Over all ranks: the loss, cross-entropies by depth and right answers by depth, all as sums over rows.

        The sums of ``more``, numbers of this rank, come along.
        """
        mine = [0.0] * (1 + 2 * depths)
        if self.loss:
            parts = (
                torch.stack([getattr(sums, name) for sums in self.sums]).sum(0) for name in ("loss_T", "correct_T")
            )
            mine = [float(torch.stack(self.loss).sum()), *(value for part in parts for value in part.tolist())]
        if ranks.is_main and self.before:
            mine = [a + b for a, b in zip(mine, self.before, strict=True)]
        total, *by_depth = ranks.all_reduce_sum([*mine, *more])
        return total, by_depth[:depths], by_depth[depths : 2 * depths], by_depth[2 * depths :]

    def kept_back(self, ranks: Ranks, depths: int) -> dict[str, Any]:
        """What a checkpoint holds of the steps that no log line has told yet, for :meth:`Window` to go on from."""
        if not self.kept:
            return {}
        total, loss_T, correct_T, _ = self.totals(ranks, depths, [])
        counts = {name: getattr(self, name) for name in ("divided_by", "kept", "counted", "kept_T")}
        return {"before": [total, *loss_T, *correct_T], **counts}


def _added(left: list[int], right: list[int]) -> list[int]:
    return [a + b for a, b in zip_longest(left, right, fillvalue=0)]
