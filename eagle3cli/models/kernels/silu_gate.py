"""The gate of an MLP on a GPU, in one visit forward and one backward.

Roundings are those of the plain gate in ``models/draft.py``: ``silu(gate)`` is rounded before it is multiplied.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 1024
WARPS = 4


@triton.jit
def forward_kernel(gate_ptr, up_ptr, out_ptr, size, BLOCK: tl.constexpr):
    """``silu(gate) * up``."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    gate = tl.load(gate_ptr + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=inside, other=0.0).to(tl.float32)
    silu = (gate / (1.0 + tl.exp(-gate))).to(out_ptr.dtype.element_ty).to(tl.float32)
    tl.store(out_ptr + at, (silu * up).to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(grad_ptr, gate_ptr, up_ptr, d_gate_ptr, d_up_ptr, size, BLOCK: tl.constexpr):
    """``d(gate) = grad up s (1 + gate (1 - s))`` with ``s = sigmoid(gate)``, and ``d(up) = grad silu(gate)``."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    grad = tl.load(grad_ptr + at, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(gate_ptr + at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + at, mask=inside, other=0.0).to(tl.float32)
    sigmoid = 1.0 / (1.0 + tl.exp(-gate))
    silu = (gate * sigmoid).to(gate_ptr.dtype.element_ty).to(tl.float32)
    d_silu = (grad * up).to(gate_ptr.dtype.element_ty).to(tl.float32)
    d_gate = d_silu * sigmoid * (1.0 + gate * (1.0 - sigmoid))
    tl.store(d_gate_ptr + at, d_gate.to(d_gate_ptr.dtype.element_ty), mask=inside)
    tl.store(d_up_ptr + at, (grad * silu).to(d_up_ptr.dtype.element_ty), mask=inside)


def silu_gate(gate: Tensor, up: Tensor) -> Tensor:
    """``silu(gate) * up``."""
    gate = gate.contiguous()
    out = torch.empty_like(gate)
    if out.numel():
        with torch.cuda.device_of(gate):
            forward_kernel[_grid(out)](gate, up.contiguous(), out, out.numel(), BLOCK=BLOCK, num_warps=WARPS)
    return out


def silu_gate_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of ``gate`` and ``up``."""
    gate = gate.contiguous()
    d_gate = torch.empty_like(gate)
    d_up = torch.empty_like(gate)
    if gate.numel():
        tensors = (grad.contiguous(), gate, up.contiguous(), d_gate, d_up)
        with torch.cuda.device_of(gate):
            backward_kernel[_grid(gate)](*tensors, gate.numel(), BLOCK=BLOCK, num_warps=WARPS)
    return d_gate, d_up


def _grid(x: Tensor) -> tuple[int]:
    return (triton.cdiv(x.numel(), BLOCK),)
