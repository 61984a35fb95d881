"""FP8 (DeepSeek's and Qwen3's block scales, one scale a tensor or row) and ModelOpt's FP8 and NVFP4.

W = stored weight x its scale, whether that is called ``weight_scale`` or ``weight_scale_inv``.
"""

from __future__ import annotations

from collections.abc import Collection
from functools import partial

import torch
from torch import Tensor

from eagle3cli.backends.target.weights.packing import scale_values, spread, unpack_fp4
from eagle3cli.backends.target.weights.quantization import Quantization
from eagle3cli.backends.target.weights.recipe import Parts, Recipe

SCALES = {"_scale_inv": "", "_scale": "", ".qscale_weight": ".weight", ".scale": ".weight"}
"""Ends of the names of scales, and what stands there in the name of the weight."""


def recipes(names: Collection[str], quantization: Quantization) -> dict[str, Recipe]:
    """The weights that have scales, by name."""
    stored = set(names)
    block = quantization.config.get("weight_block_size")
    made = {}
    for name in names:
        for ending, instead in SCALES.items():
            weight = name.removesuffix(ending) + instead
            if not name.endswith(ending) or weight not in stored:
                continue
            parts = {"weight": weight, "scale": name}
            if f"{weight}_scale_2" in stored:
                parts["global"] = f"{weight}_scale_2"
            made[weight] = Recipe(parts, partial(decode, block=block))
    return made


def decode(parts: Parts, block: list[int] | None) -> Tensor:
    """A weight ``[..., O, I]``; two 4-bit floats a byte where it is stored in bytes, with scales of 16 or 32 each.

    ``global`` is NVFP4's scale of its scales. Raises ValueError for other types.
    """
    weight = parts["weight"]
    if weight.dtype in (torch.uint8, torch.int8):
        values = unpack_fp4(weight)
    elif weight.dtype in (torch.float8_e4m3fn, torch.float8_e5m2):
        values = weight.float()
    else:
        raise ValueError(f"{weight.dtype} is not FP8")
    scale = scale_values(parts["scale"])
    if "global" in parts:
        scale = scale * parts["global"].float()
    return values.mul_(spread(scale, values.shape, block))
