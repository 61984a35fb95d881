"""An exponential moving average (EMA) of the weights: what is measured and kept, beside the weights that train.

At a constant learning rate the weights move about a point that their average is nearer to, so that the average is worth
what a rate that falls would bring, at any step and without knowing which one is the last (Polyak and Juditsky, 1992).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

POWER = 4
"""How much of a young run its average forgets. Of 3 to 10 this is best after 124 steps, and near it after 372."""


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

        ``d`` is at most the decay, and at first ``(1 - 1 / steps) ** POWER``: the average reaches back over a share of
        the steps, however many there are yet, and not to the weights that training began with (Karras et al., 2024,
        "Analyzing and Improving the Training Dynamics of Diffusion Models", section 3.1).
        """
        decay = min(self.decay, (1 - 1 / steps) ** POWER)
        torch._foreach_lerp_(self.averages, self.weights, 1 - decay)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange weights and averages, in place: where the weights lie is known to others."""
        for weight, average in zip(self.weights, self.averages, strict=True):
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
