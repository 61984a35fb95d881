"""Rows of a tensor by their numbers, where no number comes twice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def gather(x_RX: Tensor, index_L: Tensor) -> Tensor:
    """``x[index]`` for different indices.

    Torch does not know that they differ: its own backward pass adds into zeros, for which a GPU sorts the indices.
    """
    rows: Tensor = _Gather.apply(x_RX, index_L)  # type: ignore[no-untyped-call]
    return rows


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.shape = x.shape
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors
        return grads[0].new_zeros(ctx.shape).index_copy_(0, index, grads[0]), None
