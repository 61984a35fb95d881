"""Muon, whose work ranks on a CPU share.

A Newton-Schulz iteration takes a CPU a quarter of a small draft's step, and every rank has the same gradients. So each
rank makes the updates of some matrices and the ranks' sum brings them to all, as in Keller Jordan's distributed Muon;
here every rank keeps all moments, so that any one of them can write a checkpoint. Results are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eagle3cli.errors import UsageError
from eagle3cli.runtime.distributed import Ranks


def make_muon(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """torch's Muon with updates as large as AdamW's; raises UsageError for a torch that has none."""
    if not hasattr(torch.optim, "Muon"):
        what = f"torch {torch.__version__} has no Muon"
        raise UsageError(
            "package-too-old", what, where="train.optimizer", fix="pip install 'torch>=2.9', or use --optimizer adamw"
        )
    return torch.optim.Muon(groups, lr=0.0, weight_decay=0.0, adjust_lr_fn="match_rms_adamw")


class SharedMuon:
    """A step of Muon of which every rank does a part."""

    def __init__(self, muon: torch.optim.Optimizer, ranks: Ranks) -> None:
        self.muon = muon
        self.ranks = ranks
        self.matrices: list[Tensor] = [matrix for group in muon.param_groups for matrix in group["params"]]
        owners = deal([matrix.shape for matrix in self.matrices], ranks.world_size)
        self.of_others = [m for m, owner in zip(self.matrices, owners, strict=True) if owner != ranks.rank]
        # A GPU makes them in less time than they take to travel.
        self.shared = ranks.world_size > 1 and all(matrix.device.type == "cpu" for matrix in self.matrices)

    @torch.no_grad()
    def step(self) -> None:
        """One update of all matrices from their gradients, which must be the same on all ranks."""
        if not self.shared:
            self.muon.step()
            return
        momentum = self.muon.defaults["momentum"]
        for matrix in self.of_others:
            assert matrix.grad is not None
            self.muon.state[matrix]["momentum_buffer"].lerp_(matrix.grad, 1 - momentum)
            matrix.grad = None  # torch's step leaves this matrix alone
        self.muon.step()
        for matrix in self.of_others:
            matrix.zero_()
        self.ranks.all_reduce(self.matrices)


def deal(shapes: Sequence[Sequence[int]], world_size: int) -> list[int]:
    """The rank of each matrix: the dearest first, always to the rank with the least to do."""
    work = [min(shape) ** 2 * max(shape) for shape in shapes]
    load = [0] * world_size
    owners = [0] * len(shapes)
    for at in sorted(range(len(shapes)), key=lambda i: (-work[i], i)):
        owners[at] = min(range(world_size), key=lambda rank: (load[rank], rank))
        load[owners[at]] += work[at]
    return owners
