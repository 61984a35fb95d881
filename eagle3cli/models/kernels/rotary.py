"""Rotary position embedding on a GPU, in one visit forward and one backward, straight from a joint projection.

Roundings are those of ``models/draft.py``: both products are rounded before they are added. Nothing is kept for the
backward pass but the tables.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

HEADS = 16
"""Heads of a program: 16 numbers in each of its threads where a head has 128."""
WARPS = 4


@triton.jit
def rotate_kernel(
    x_ptr,
    cos_ptr,
    sin_ptr,
    y_ptr,
    heads,
    x_row,
    x_head,
    table_row,
    HALF: tl.constexpr,
    HALF_BLOCK: tl.constexpr,
    HEADS: tl.constexpr,
    BACKWARD: tl.constexpr,
):
    """Some heads of one row: channel j turns with channel j + D/2; backward the other way round."""
    row = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * HEADS + tl.arange(0, HEADS)
    channel = tl.arange(0, HALF_BLOCK)
    inside = (head < heads)[:, None] & (channel < HALF)[None, :]
    x_at = x_ptr + row * x_row + head[:, None].to(tl.int64) * x_head + channel[None, :]
    low = tl.load(x_at, mask=inside, other=0.0).to(tl.float32)
    high = tl.load(x_at + HALF, mask=inside, other=0.0).to(tl.float32)
    table = row * table_row + channel
    cos_low = tl.load(cos_ptr + table, mask=channel < HALF, other=0.0).to(tl.float32)[None, :]
    cos_high = tl.load(cos_ptr + table + HALF, mask=channel < HALF, other=0.0).to(tl.float32)[None, :]
    sin_low = tl.load(sin_ptr + table, mask=channel < HALF, other=0.0).to(tl.float32)[None, :]
    sin_high = tl.load(sin_ptr + table + HALF, mask=channel < HALF, other=0.0).to(tl.float32)[None, :]
    kind = y_ptr.dtype.element_ty
    if BACKWARD:
        to_low = high * sin_high
        to_high = -(low * sin_low)
    else:
        to_low = -(high * sin_low)
        to_high = low * sin_high
    y_low = (low * cos_low).to(kind).to(tl.float32) + to_low.to(kind).to(tl.float32)
    y_high = (high * cos_high).to(kind).to(tl.float32) + to_high.to(kind).to(tl.float32)
    y_at = y_ptr + (row * heads + head[:, None]) * (2 * HALF) + channel[None, :]
    tl.store(y_at, y_low.to(kind), mask=inside)
    tl.store(y_at + HALF, y_high.to(kind), mask=inside)


def rotate(x_RAD: Tensor, cos_RD: Tensor, sin_RD: Tensor) -> Tensor:
    """As ``models.layers.parts.rotate``; the tables carry no gradient."""
    rotated: Tensor = _Rotate.apply(x_RAD, cos_RD, sin_RD)  # type: ignore[no-untyped-call]
    return rotated


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_RAD: Tensor, cos_RD: Tensor, sin_RD: Tensor) -> Tensor:
        tables = (cos_RD.contiguous(), sin_RD.contiguous())
        ctx.save_for_backward(*tables)
        return _run(x_RAD, *tables, backward=False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _run(grads[0], *ctx.saved_tensors, backward=True), None, None


def _run(x: Tensor, cos: Tensor, sin: Tensor, *, backward: bool) -> Tensor:
    x = x if x.stride(2) == 1 else x.contiguous()
    count, heads, size = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if y.numel():
        half = size // 2
        with torch.cuda.device_of(x):
            rotate_kernel[(count, triton.cdiv(heads, HEADS))](
                x,
                cos,
                sin,
                y,
                heads,
                x.stride(0),
                x.stride(1),
                cos.stride(0),
                HALF=half,
                HALF_BLOCK=triton.next_power_of_2(half),
                HEADS=HEADS,
                BACKWARD=backward,
                num_warps=WARPS,
            )
    return y
