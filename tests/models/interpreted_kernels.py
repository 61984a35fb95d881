"""The Triton kernels of the layers, run by Triton's interpreter on a CPU, against plain torch.

``tests/training/ttt/test_kernels.py`` runs this file in a process of its own, with ``TRITON_INTERPRET=1``. The
interpreter cuts fp32 off to bf16 where a GPU rounds, so what is exact is shown in fp32, and bf16 to two last digits.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from eagle3cli.models.kernels import rms_norm, rotary, silu_gate
from eagle3cli.models.layers.parts import rotate

TOLERANCE: dict[torch.dtype, dict[str, Any]] = {
    torch.float32: {"rtol": 1e-5, "atol": 1e-5},
    torch.bfloat16: {"rtol": 2**-6, "atol": 2**-5},
}
dtypes = pytest.mark.parametrize("dtype", TOLERANCE)


def states(*sizes: int) -> Tensor:
    return torch.randn(*sizes, generator=torch.Generator().manual_seed(sum(sizes)))


def plain_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """As ``RMSNorm`` computes it."""
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * scaled.to(x.dtype)


@dtypes
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (1, 64), (7, 96), (40, 130), (0, 8)])
@pytest.mark.parametrize("apart", [0, 6])
def test_the_norm_is_the_plain_one(
    monkeypatch: pytest.MonkeyPatch, rows: int, width: int, apart: int, dtype: torch.dtype
) -> None:
    """Output and both gradients, also where rows do not stand side by side and programs have several rows."""
    monkeypatch.setattr(rms_norm, "PROGRAMS", 3)
    x = states(rows, width + apart)[:, :width].to(dtype)
    weight = (1 + 0.3 * states(width)).to(dtype)
    grad = states(rows, width + apart + 1)[:, :width].to(dtype)
    results = []
    for norm in (rms_norm.rms_norm, plain_norm):
        leaves = [leaf.detach().requires_grad_() for leaf in (x, weight)]
        y = norm(*leaves, 1e-5)
        y.backward(grad)
        results.append([y.detach(), *(leaf.grad for leaf in leaves)])
    for name, got, want in zip(("y", "d_x", "d_weight"), *results, strict=True):
        assert got.dtype == dtype
        tolerance = TOLERANCE[dtype]
        if name == "d_weight" and dtype == torch.bfloat16:
            tolerance = {"rtol": 2**-6, "atol": 2**-4}  # a sum over all rows of numbers that were cut off
        torch.testing.assert_close(got, want, **tolerance)


def test_leading_dimensions_stay() -> None:
    x = states(2, 3, 8)
    weight = states(8)
    torch.testing.assert_close(rms_norm.rms_norm(x, weight, 1e-5), plain_norm(x, weight, 1e-5))


@dtypes
@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (0, 5), (2, 1024)])
def test_the_gate_is_the_plain_one(shape: tuple[int, int], dtype: torch.dtype) -> None:
    gate = (4 * states(*shape)).to(dtype)
    up = states(shape[0], shape[1] + 1)[:, 1:].to(dtype)
    grad = states(shape[0], shape[1]).to(dtype)
    leaves = [leaf.detach().requires_grad_() for leaf in (gate, up)]
    want = F.silu(leaves[0]) * leaves[1]
    want.backward(grad)
    torch.testing.assert_close(silu_gate.silu_gate(gate, up), want.detach(), **TOLERANCE[dtype])
    for got, leaf in zip(silu_gate.silu_gate_backward(grad, gate, up), leaves, strict=True):
        torch.testing.assert_close(got, leaf.grad, **TOLERANCE[dtype])


@dtypes
@pytest.mark.parametrize(("count", "heads", "size"), [(1, 1, 2), (5, 3, 12), (2, 40, 16), (0, 2, 8)])
def test_rotary_embedding_is_the_plain_one(count: int, heads: int, size: int, dtype: torch.dtype) -> None:
    """From a part of a wider row, and with a gradient whose heads stand before its rows."""
    x = states(count, heads * size + 5)[:, 3 : 3 + heads * size].unflatten(1, (heads, size)).to(dtype)
    cos, sin = states(count, size).to(dtype), states(count, size + 1)[:, 1:].to(dtype)
    grad = states(heads, count, size).transpose(0, 1).to(dtype)
    results = []
    for function in (rotary.rotate, rotate):
        leaf = x.detach().requires_grad_()
        y = function(leaf, cos, sin)
        y.backward(grad)
        results.append((y.detach(), leaf.grad))
    for got, want in zip(*results, strict=True):
        torch.testing.assert_close(got, want, **TOLERANCE[dtype])
