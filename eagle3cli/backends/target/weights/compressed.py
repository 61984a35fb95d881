"""compressed-tensors: FP8, INT8, packed integers of 1 to 8 bits, NVFP4 and MXFP4, each layer as its group says.

W = (stored - zero point) x scale, the scale for a tensor, a row, a group of inputs or a block.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from eagle3cli.backends.target.weights.packing import scale_values, spread, unpack, unpack_apart, unpack_fp4
from eagle3cli.backends.target.weights.quantization import Quantization
from eagle3cli.backends.target.weights.recipe import Parts, Recipe, bases, parts_of

KEYS = (
    *("weight_packed", "weight", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"),
    "weight_global_scale",
)


def recipes(names: Collection[str], quantization: Quantization) -> dict[str, Recipe]:
    """The weights of the layers that are quantised, by name."""
    stored = set(names)
    layers = {*bases(names, ".weight_packed"), *(base for base in bases(names, ".weight_scale"))}
    made = {}
    for base in sorted(layers):
        parts = parts_of(base, KEYS, stored)
        if parts.keys() & {"weight", "weight_packed"}:
            made[f"{base}.weight"] = Recipe(parts, partial(decode, args=_weights_of(base, quantization)))
    return made


def _weights_of(layer: str, quantization: Quantization) -> Mapping[str, Any]:
    """What the group of a layer says of its weights: the one that names it, else the one for all of its class."""
    by_class: list[Mapping[str, Any]] = []
    for group in quantization.groups():
        weights = group.get("weights")
        if not isinstance(weights, dict):
            continue
        for target in map(str, group.get("targets") or ()):
            if _names(target, layer):
                return weights
            by_class += [weights] if target.isidentifier() else []
    return by_class[0] if by_class else {}


def _names(target: str, layer: str) -> bool:
    """Whether a group's target names this layer. Raises ValueError for a pattern that is none."""
    if not target.startswith("re:"):
        return layer in (target, f"model.{target}")
    try:
        return re.match(target[3:], layer) is not None
    except re.error as error:
        raise ValueError(f"{target} is no pattern: {error}") from error


def decode(parts: Parts, args: Mapping[str, Any]) -> Tensor:
    """A weight ``[O, I]``. Raises ValueError for one that is not stored as its format says."""
    if "weight_packed" in parts and parts["weight_packed"].dtype == torch.uint8:
        return _four_bit_floats(parts)
    zero = parts.get("weight_zero_point")
    scale = scale_values(parts["weight_scale"])
    if "weight_packed" in parts:
        bits = int(args.get("num_bits") or 4)
        rows, columns = (int(size) for size in parts["weight_shape"].tolist()[-2:])
        half = 2 ** (bits - 1)
        values: Tensor = _integers(parts["weight_packed"], bits, columns).float() - half
        if zero is not None and zero.dtype == torch.int32:
            zero = _integers(zero.transpose(-2, -1).contiguous(), bits, rows).transpose(-2, -1).float() - half
    elif parts["weight"].dtype in (torch.int8, torch.float8_e4m3fn, torch.float8_e5m2):
        values = parts["weight"].float()
    else:
        raise ValueError(f"it is stored in {parts['weight'].dtype} beside a scale: not compressed")
    block = args.get("block_structure")
    block = [int(size) for size in block.split("x")] if isinstance(block, str) else block
    group_I = parts.get("weight_g_idx")
    is_ordered = group_I is None or bool((group_I < 0).any())  # -1 where no order was chosen

    def over_weights(grid: Tensor) -> Tensor:
        if not is_ordered and grid.dim() > 1 and grid.shape[-1] > 1:
            return grid.index_select(-1, parts["weight_g_idx"].long())
        return spread(grid, values.shape, block)

    if zero is not None:
        values -= over_weights(zero.float())
    values *= over_weights(scale)
    return values


def _integers(words: Tensor, bits: int, count: int) -> Tensor:
    """Unsigned integers of words: one stream of bits, or, as versions before 0.18 wrote, whole integers in each word.

    Which it is follows from how many words there are. Raises ValueError where it is neither.
    """
    stored = words.shape[-1]
    if stored == -(-count * bits // 32):
        return unpack(words, bits, count)
    if stored == -(-count // (32 // bits)):
        return unpack_apart(words, bits, count)
    raise ValueError(f"{stored} words a row for {count} integers of {bits} bits")


def _four_bit_floats(parts: Parts) -> Tensor:
    """NVFP4, whose scales have one of their own that divides, and MXFP4."""
    values = unpack_fp4(parts["weight_packed"])
    scale = scale_values(parts["weight_scale"])
    if "weight_global_scale" in parts:
        scale = scale / parts["weight_global_scale"].float()
    return values.mul_(spread(scale, values.shape))
