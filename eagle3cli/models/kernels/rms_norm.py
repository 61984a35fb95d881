"""The root-mean-square norm of low-precision states on a GPU, in one visit of a row forward and one backward.

Roundings are those of the plain norm in ``models/draft.py``: the scaled states are rounded before the weight. For the
backward pass only the states themselves are kept, and a number for each row.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 512
"""Of a backward pass: each sums the weight's gradient over its rows, and their sums are added."""


@triton.jit
def forward_kernel(x_ptr, weight_ptr, y_ptr, inverse_ptr, width, x_stride, eps, BLOCK: tl.constexpr):
    """``y = w * round(x / sqrt(mean(x^2) + eps))`` of one row."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    x = tl.load(x_ptr + row * x_stride + column, mask=inside, other=0.0).to(tl.float32)
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    inverse = 1.0 / tl.sqrt(tl.sum(x * x, 0) / width + eps)
    scaled = (x * inverse).to(y_ptr.dtype.element_ty).to(tl.float32)
    tl.store(y_ptr + row * width + column, (weight * scaled).to(y_ptr.dtype.element_ty), mask=inside)
    tl.store(inverse_ptr + row, inverse)


@triton.jit
def backward_kernel(
    grad_ptr,
    x_ptr,
    weight_ptr,
    inverse_ptr,
    d_x_ptr,
    d_weight_ptr,
    rows,
    width,
    grad_stride,
    x_stride,
    BLOCK: tl.constexpr,
):
    """The gradients of every so many rows.

    With ``n = x / rms`` and ``g = w grad``, ``dx = (g - n mean(g n)) / rms``, ``dw += grad n``.
    """
    first = tl.program_id(0).to(tl.int64)
    programs = tl.num_programs(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < width
    weight = tl.load(weight_ptr + column, mask=inside, other=0.0).to(tl.float32)
    d_weight = tl.zeros((BLOCK,), tl.float32)
    grad_ptr += first * grad_stride
    x_ptr += first * x_stride
    d_x_ptr += first * width
    inverse_ptr += first
    for _ in range(first, rows, programs):
        x = tl.load(x_ptr + column, mask=inside, other=0.0).to(tl.float32)
        grad = tl.load(grad_ptr + column, mask=inside, other=0.0).to(tl.float32)
        inverse = tl.load(inverse_ptr)
        normed = x * inverse
        d_weight += grad * normed.to(x_ptr.dtype.element_ty).to(tl.float32)
        grad *= weight
        d_x = inverse * (grad - normed * (tl.sum(grad * normed, 0) / width))
        tl.store(d_x_ptr + column, d_x.to(d_x_ptr.dtype.element_ty), mask=inside)
        grad_ptr += programs * grad_stride
        x_ptr += programs * x_stride
        d_x_ptr += programs * width
        inverse_ptr += programs
    tl.store(d_weight_ptr + first * width + column, d_weight, mask=inside)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """``w * x / sqrt(mean(x^2) + eps)`` over the last dimension."""
    normed: Tensor = _RMSNorm.apply(x, weight, eps)  # type: ignore[no-untyped-call]
    return normed


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        rows = _rows(x)
        y = torch.empty(rows.shape, dtype=x.dtype, device=x.device)
        inverse = torch.empty(len(rows), dtype=torch.float32, device=x.device)
        if len(rows):
            width = rows.shape[1]
            with torch.cuda.device_of(rows):
                forward_kernel[(len(rows),)](rows, weight, y, inverse, width, rows.stride(0), eps, **sizes(width))
        ctx.save_for_backward(rows, weight, inverse)
        return y.view(x.shape)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        rows, weight, inverse = ctx.saved_tensors
        grad = _rows(grads[0])
        width = rows.shape[1]
        programs = min(PROGRAMS, len(rows))
        d_x = torch.empty(rows.shape, dtype=rows.dtype, device=rows.device)
        d_weight = torch.empty(programs, width, dtype=torch.float32, device=rows.device)
        if programs:
            strides = (grad.stride(0), rows.stride(0))
            with torch.cuda.device_of(grad):
                backward_kernel[(programs,)](
                    grad, rows, weight, inverse, d_x, d_weight, len(rows), width, *strides, **sizes(width)
                )
        return d_x.view(grads[0].shape), d_weight.sum(0).to(weight.dtype), None


def _rows(x: Tensor) -> Tensor:
    """All rows ``[R, H]``, each side by side in memory."""
    rows = x.reshape(-1, x.shape[-1])
    return rows if rows.stride(1) == 1 else rows.contiguous()


def sizes(width: int) -> dict[str, int]:
    """A whole row is in the registers of a program: 16 numbers in each thread, with 4 to 32 warps."""
    block = triton.next_power_of_2(width)
    return {"BLOCK": block, "num_warps": min(32, max(4, block // 512))}
