"""How a .gguf file stretches RoPE: transformers reads its base alone, but for GPT-OSS.

llama.cpp keeps Llama 3's stretch as a factor for each frequency, with no word of what they are made of; here they
become the numbers of ``config.json`` again, and are compared with what those numbers give.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import linear_regression
from typing import Any

from eagle3cli.errors import ModelError

FACTORS = "rope_freqs.weight"
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
"""Of all Llama 3 models; their factors are 8 and 32."""
YARN: dict[str, tuple[str, type]] = {
    "scaling.original_context_length": ("original_max_position_embeddings", int),
    "scaling.yarn_beta_fast": ("beta_fast", float),
    "scaling.yarn_beta_slow": ("beta_slow", float),
}
"""Numbers of YaRN that transformers reads, too, under its names."""
YARN_PLAIN = {
    "scaling.attn_factor": 1.0,
    "scaling.yarn_attn_factor": 1.0,
    "scaling.yarn_ext_factor": 1.0,
    "scaling.yarn_log_multiplier": 0.0,
}
"""Those that it does not, and what they say where it need not."""
FIX = "pass the original model folder"


def read_scaling(reader: Any, theta: float) -> dict[str, Any] | None:
    """The stretch that ``reader`` (a GGUFReader) names, in the words of ``rope_parameters``; None for plain RoPE.

    ``theta`` is the base. Raises ModelError for one that no numbers of transformers express.
    """
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    if FACTORS in tensors:
        return scaling_of_factors([float(value) for value in tensors[FACTORS].data.ravel()], theta)
    if any(name.startswith("rope_factors_") for name in tensors):
        raise ModelError(
            "no-gguf", "its RoPE has a table for short texts and one for long ones", where=FACTORS, fix=FIX
        )
    architecture = reader.get_field("general.architecture").contents()
    values: dict[str, Any] = {}
    for key in ("scaling.factor", "scale_linear", "scaling.type", *YARN, *YARN_PLAIN):
        field = reader.get_field(f"{architecture}.rope.{key}")
        values[key] = None if field is None else field.contents()
    factor = values["scaling.factor"] or values["scale_linear"]
    kind = values["scaling.type"] or ("none" if factor in (None, 1.0) else "linear")  # as llama.cpp takes it
    if kind == "none":
        return None
    if kind == "linear":
        return {"rope_type": "linear", "factor": float(factor)}
    if kind == "yarn" and all(values[key] in (None, plain) for key, plain in YARN_PLAIN.items()):
        return {
            "rope_type": "yarn",
            "factor": float(factor),
            **{name: number(values[key]) for key, (name, number) in YARN.items() if values[key] is not None},
        }
    raise ModelError(
        "no-gguf", f"its RoPE is stretched in a way that is not read here: {kind}", where="rope.scaling", fix=FIX
    )


def scaling_of_factors(factors: Sequence[float], theta: float) -> dict[str, Any] | None:
    """What divides each frequency by these factors: nothing, ``linear`` or ``llama3``.

    Raises ModelError for others.
    """
    highest = max(factors)
    if _alike(factors, [1.0] * len(factors)):
        return None
    if _alike(factors, [highest] * len(factors)):
        return {"rope_type": "linear", "factor": round(highest, 4)}
    lengths = [2 * math.pi * theta ** (pair / len(factors)) for pair in range(len(factors))]
    for numbers in _possible(factors, lengths):
        if _alike(_llama3_factors(lengths, highest, numbers), factors):
            return {"rope_type": "llama3", "factor": round(highest, 4), **numbers}
    raise ModelError("no-gguf", "its RoPE has factors that are not Llama 3's", where=FACTORS, fix=FIX)


def _possible(factors: Sequence[float], lengths: Sequence[float]) -> list[dict[str, Any]]:
    """Numbers of Llama 3's stretch that these factors may be made of, by the wavelengths.

    Between those of 1 and of the whole factor, 1 / f lies on a straight line over 1 / wavelength, which tells two of
    three numbers; with ``low_freq_factor`` 1 the same stretch is said in another unit.
    """
    highest = max(factors)
    shares = [(1 / factor - 1 / highest) / (1 - 1 / highest) for factor in factors]
    points = [(1 / length, share) for length, share in zip(lengths, shares, strict=True) if 1e-3 < share < 1 - 1e-3]
    if not points:
        return [LLAMA3]
    if len(points) == 1:
        ((x, share),) = points
        return [LLAMA3, _llama3(4.0, (3 * share + 1) / x)]
    line = linear_regression([x for x, _ in points], [share for _, share in points])
    return [LLAMA3, _llama3(1 - 1 / line.intercept, -line.slope / line.intercept)] if line.intercept < 0 else [LLAMA3]


def _llama3(high: float, original: float) -> dict[str, Any]:
    return {**LLAMA3, "high_freq_factor": round(high, 3), "original_max_position_embeddings": round(original)}


def _llama3_factors(lengths: Sequence[float], highest: float, numbers: dict[str, Any]) -> list[float]:
    low = numbers["low_freq_factor"]
    turns = [numbers["original_max_position_embeddings"] / length for length in lengths]
    shares = [min(1.0, max(0.0, (each - low) / (numbers["high_freq_factor"] - low))) for each in turns]
    return [1 / ((1 - share) / highest + share) for share in shares]


def _alike(one: Sequence[float], other: Sequence[float]) -> bool:
    return all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(one, other, strict=True))
