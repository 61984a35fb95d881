"""What a step minimises: the weights of the loss's terms at every depth, from the settings.

``mix`` weighs cross-entropy against total variation by ``k_i = scale * exp(-decay * rate_i)`` (LK losses), where
``rate_i`` is the mean acceptance rate of depth i in the step before: a constant for the whole step, so that
accumulated micro batches give what the large batch gives.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from eagle3cli.runtime.distributed import SINGLE_PROCESS, Ranks
from eagle3cli.settings.training import TrainSettings
from eagle3cli.training.ttt.loss import DepthSums, TermWeights


@dataclass(frozen=True)
class Objective:
    """The terms' weights for one step."""

    weights: TermWeights
    follows_rates: bool
    """Whether the next step's weights depend on this step's acceptance rates."""

    @classmethod
    def of(cls, settings: TrainSettings, rates_T: Sequence[float]) -> Objective:
        """``rates_T`` are the mean acceptance rates of the step before; empty at the start, which counts as 0."""
        decay = [settings.loss_decay**depth for depth in range(settings.ttt_length)]
        zeros = [0.0] * len(decay)
        if settings.loss == "kl":
            return cls(TermWeights.of_cross_entropy(decay), False)
        if settings.loss == "tv":
            return cls(TermWeights(zeros, decay, zeros), False)
        if settings.loss == "lk":
            return cls(TermWeights(zeros, zeros, decay), False)
        shares = [settings.kl_scale * math.exp(-settings.kl_decay * rate) for rate in rates_T or zeros]
        kl = [d * k for d, k in zip(decay, shares, strict=True)]
        return cls(TermWeights(kl, [d - x for d, x in zip(decay, kl, strict=True)], zeros), True)

    def next_rates(
        self, sums: Sequence[DepthSums], kept_T: Sequence[int], ranks: Ranks = SINGLE_PROCESS
    ) -> list[float]:
        """Mean acceptance rate of every depth in this step, on all ranks; nothing where no later step asks."""
        if not self.follows_rates or not any(kept_T):
            return []
        mine_T = torch.stack([part.rate_T for part in sums]).sum(0).tolist() if sums else [0.0] * len(kept_T)
        total_T = ranks.all_reduce_sum(mine_T)
        return [rate / max(1, kept) for rate, kept in zip(total_T, kept_T, strict=True)]
