"""Which rows each step trains on: a pure function of the seed and the step, so that any step can be resumed."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Order:
    """Epochs of shuffled rows cut into batches; the last batch of an epoch holds what is left."""

    rows: int
    batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Batches that show every row once."""
        return -(-self.rows // self.batch_size)

    def epoch_of(self, step: int) -> int:
        """Epoch (from 0) of a 0-based step."""
        return step // self.steps_per_epoch

    def shuffled(self, epoch: int) -> list[int]:
        """All rows in the order of one epoch."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        order: list[int] = torch.randperm(self.rows, generator=generator).tolist()
        return order

    def batch(self, step: int) -> list[int]:
        """Rows of a 0-based step."""
        epoch, at = divmod(step, self.steps_per_epoch)
        return self.shuffled(epoch)[at * self.batch_size : (at + 1) * self.batch_size]
