"""Which positions initial weights are solved from."""

from __future__ import annotations

import torch

from eagle3cli.backends.batches.batch import TargetBatch
from eagle3cli.training.initial.sample import gather_sample


def test_no_position_looks_past_the_end_of_its_row() -> None:
    """Rows that begin with a reply (cut in front) stand right behind the end of another."""
    tokens, hidden = 9, 4
    batch = TargetBatch(
        torch.arange(tokens), torch.ones(tokens, dtype=torch.bool), (0, 4, 5, 9), torch.randn(tokens, 3 * hidden),
        torch.randn(tokens, hidden), torch.arange(tokens), (0, 1, 2),
    )  # fmt: skip
    sample = gather_sample([batch], torch.ones(hidden), 100)
    assert sample.position_R.tolist() == [0, 1, 5, 6]  # p, p+1 and p+2 are of one row
    torch.testing.assert_close(sample.last_RH, batch.last_NH[[1, 2, 6, 7]])
