"""AWQ ("gemm"): 4-bit integers along a row in an order of their own, a scale and a zero a group of inputs.

W[o, i] = scales[g, o] * (q[i, o] - zero[g, o])
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from eagle3cli.backends.target.weights.packing import unpack
from eagle3cli.backends.target.weights.quantization import Quantization
from eagle3cli.backends.target.weights.recipe import Parts, Recipe, bases, parts_of

KEYS = ("qweight", "qzeros", "scales")
PLACES = (0, 4, 1, 5, 2, 6, 3, 7)
"""In which of a word's eight places the outputs 0 to 7 stand."""


def recipes(names: Collection[str], quantization: Quantization) -> dict[str, Recipe]:
    """The weights of the layers that are quantised, by name."""
    stored = set(names)
    return {f"{base}.weight": Recipe(parts_of(base, KEYS, stored), decode) for base in bases(names, ".qweight")}


def decode(parts: Parts) -> Tensor:
    """A weight ``[O, I]`` of ``qweight`` ``[I, O / 8]``, ``qzeros`` ``[G, O / 8]`` and ``scales`` ``[G, O]``."""
    scale_GO = parts["scales"].float()
    value_IO = _in_order(parts["qweight"])
    zero_GO = _in_order(parts["qzeros"])
    size = -(-len(value_IO) // len(scale_GO))
    zero_IO, scale_IO = (group.repeat_interleave(size, 0)[: len(value_IO)] for group in (zero_GO, scale_GO))
    return value_IO.sub_(zero_IO).mul_(scale_IO).T.contiguous()


def _in_order(words: Tensor) -> Tensor:
    """Integers ``[R, O]`` in float32 of words ``[R, O / 8]``."""
    values: Tensor = unpack(words, 4, 8 * words.shape[1]).unflatten(-1, (-1, 8))
    return values[..., PLACES].flatten(-2).float()
