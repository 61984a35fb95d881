"""Products of few rows with the weights of a linear layer, as fast as this processor reads them.

Decoding multiplies one to a dozen rows with every matrix of the model, which is reading the matrix. On CPUs torch
keeps it row by row; oneDNN's own order of the same numbers is read about twice as fast (bfloat16 and float32, AVX-512),
and six rows cost little more than one, which in the usual order is so for bfloat16 alone.

The shape legend is in ``models/draft.py``; X and Y are the widths of what goes in and comes out.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import cache, partial

import torch
from torch import Tensor
from torch.nn import functional as F

Product = Callable[[Tensor], Tensor]
"""From rows ``[R, X]`` to ``x W^T + b``, ``[R, Y]``."""
ORDERED_TYPES = (torch.float32, torch.bfloat16)
SLACK = {torch.float32: 1e-4, torch.bfloat16: 2e-2}
"""Of the largest sum: by how much another order of adding up may be off."""


def product(weights: Sequence[Tensor], biases: Sequence[Tensor | None] = (), *, ordered: bool = True) -> Product:
    """The product with the matrices ``[Y, X]`` of several layers at once, whose results stand side by side.

    ``ordered`` allows a copy of them in the processor's own order, where it has one.
    """
    weight_YX = weights[0] if len(weights) == 1 else torch.cat(list(weights))
    bias_Y = None
    if any(bias is not None for bias in biases):
        # A layer without a bias beside one that has it adds zeros.
        parts = zip(weights, biases, strict=True)
        bias_Y = torch.cat([weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in parts])
    quick = _ordered(weight_YX, bias_Y) if ordered else None
    return partial(F.linear, weight=weight_YX, bias=bias_Y) if quick is None else quick


def _ordered(weight_YX: Tensor, bias_Y: Tensor | None) -> Product | None:
    """The product with a copy in oneDNN's order; None where there is none, or where it is not the same."""
    if weight_YX.device.type != "cpu" or weight_YX.dtype not in ORDERED_TYPES or not torch.backends.mkldnn.enabled:
        return None
    probe_RX = torch.linspace(-1, 1, 3 * weight_YX.shape[1], dtype=weight_YX.dtype).reshape(3, -1)
    try:
        multiply = torch.ops.mkldnn._linear_pointwise.default
        copy = torch.ops.mkldnn._reorder_linear_weight(weight_YX)

        def quick(x_RX: Tensor) -> Tensor:
            out_RY: Tensor = multiply(x_RX, copy, bias_Y, "none", [], "")
            return out_RY

        expected_RY = F.linear(probe_RX, weight_YX, bias_Y)
        apart = (quick(probe_RX) - expected_RY).abs().max()
    except (AttributeError, NotImplementedError, RuntimeError) as error:  # a torch or a processor without it
        if torch.backends.mkldnn.is_available():
            _say_slower(f"oneDNN does not order weights of {weight_YX.dtype} here ({str(error).splitlines()[0]})")
        return None
    if bool(apart <= SLACK[weight_YX.dtype] * expected_RY.abs().max()):
        return quick
    _say_slower(f"oneDNN's products of ordered weights are not torch's in {weight_YX.dtype}")
    return None


@cache
def _say_slower(reason: str) -> None:
    """Once for each reason: results are the same without."""
    logging.getLogger(__name__).warning("%s: decoding reads them as torch keeps them, at about half the speed", reason)
