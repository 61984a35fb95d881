"""GPTQ: integers of 2, 3, 4 or 8 bits along a column, a scale and a zero a group of inputs.

W[o, i] = scales[g, o] * (q[i, o] - zero[g, o]) with g the group of input i: ``g_idx`` where it is stored (act-order).
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import torch
from torch import Tensor

from eagle3cli.backends.target.weights.packing import unpack
from eagle3cli.backends.target.weights.quantization import Quantization
from eagle3cli.backends.target.weights.recipe import Parts, Recipe, bases, parts_of

ONES = {2: 0x55555555, 4: 0x11111111, 8: 0x01010101}
"""A one in each place of a word."""
KEYS = ("qweight", "qzeros", "scales", "g_idx")


def recipes(names: Collection[str], quantization: Quantization) -> dict[str, Recipe]:
    """The weights of the layers that are quantised, by name."""
    # The first layout stores zeros less one.
    make = partial(decode, offset=0 if quantization.config.get("checkpoint_format") == "gptq_v2" else 1)
    stored = set(names)
    return {f"{base}.weight": Recipe(parts_of(base, KEYS, stored), make) for base in bases(names, ".qweight")}


def decode(parts: Parts, offset: int) -> Tensor:
    """A weight ``[O, I]`` of ``qweight`` ``[I * bits / 32, O]``, ``qzeros`` ``[G, O * bits / 32]`` and ``scales``
    ``[G, O]``.

    How many bits there are follows from the shapes: layers may differ. Raises ValueError for shapes that do not fit.
    """
    scale_GO = parts["scales"].float()
    groups, outputs = scale_GO.shape
    columns = parts["qzeros"].shape[1]
    bits = next((bits for bits in (2, 3, 4, 8) if -(-outputs * bits // 32) == columns), 0)
    if not bits:
        raise ValueError(f"qzeros of {columns} words a group, scales of {outputs} outputs")
    zero_GO = _zeros(parts["qzeros"], bits, outputs, offset).float()
    packed_NO = parts["qweight"]
    inputs = 32 * len(packed_NO) // bits
    value_OI = unpack(packed_NO.T.contiguous(), bits, inputs).float()
    group_I = parts["g_idx"].long() if "g_idx" in parts else torch.arange(inputs) // -(-inputs // groups)
    return value_OI.sub_(zero_GO.T[:, group_I]).mul_(scale_GO.T[:, group_I])


def _zeros(words: Tensor, bits: int, outputs: int, offset: int) -> Tensor:
    """Zeros ``[G, O]``. Those of 0 were stored by taking ones off whole words, with borrows, so ones are added so."""
    if offset and bits in ONES:
        return unpack(words + ONES[bits], bits, outputs)
    zeros: Tensor = (unpack(words, bits, outputs) + offset) & (2**bits - 1)
    return zeros
