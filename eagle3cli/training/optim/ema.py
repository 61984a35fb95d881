"""An exponential moving average (EMA) of the weights: what is measured and kept, beside the weights that train.

At a constant learning rate the weights move about a point that their average is nearer to, so that the average is worth
what a rate that falls would bring, at any step and without knowing which one is the last (Polyak and Juditsky, 1992).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Ema:
    """Averages of weights; of weights in shards, each rank has those of its own."""

    @torch.no_grad()
    def __init__(self, weights: Sequence[Tensor], decay: float) -> None:
        self.decay = decay
        self.weights = [weight.detach() for weight in weights]
        self.averages = [weight.clone() for weight in self.weights]

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Take the weights in after the ``steps``-th step: ``average = d * average + (1 - d) * weights``.

        ``d`` is the decay, and at first less: the average of n steps is their mean while that is shorter
        (``d <= 1 - 1 / n``), so that the weights that training began with are not in it.
        """
        decay = min(self.decay, 1 - 1 / steps)
        torch._foreach_lerp_(self.averages, self.weights, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and averages, in place: where the weights lie is known to others."""
        for weight, average in zip(self.weights, self.averages, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
