"""MXFP4 (GPT-OSS): experts of 4-bit floats, a power of two for every 32 inputs."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from eagle3cli.backends.target.weights.packing import scale_values, unpack_fp4
from eagle3cli.backends.target.weights.quantization import Quantization
from eagle3cli.backends.target.weights.recipe import Parts, Recipe, bases


def recipes(names: Collection[str], quantization: Quantization) -> dict[str, Recipe]:
    """The experts' weights, by name."""
    stored = set(names)
    both = [base for base in bases(names, "_blocks") if f"{base}_scales" in stored]
    return {base: Recipe({"blocks": f"{base}_blocks", "scales": f"{base}_scales"}, decode) for base in both}


def decode(parts: Parts) -> Tensor:
    """The weights ``[E, I, O]`` of all experts: ``blocks`` is ``[E, O, I / 32, 16]``, ``scales`` ``[E, O, I / 32]``."""
    values_EOGK = unpack_fp4(parts["blocks"])
    values_EOGK *= scale_values(parts["scales"])[..., None]
    return values_EOGK.flatten(-2).transpose(-2, -1).contiguous()
