"""Tiny targets whose weights are quantised, written number by number as each format defines it, and what they mean.

A packer here knows nothing of the reader: it rounds a weight, keeps what the rounded one means, and lays the bits out
in plain loops over Python integers.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.families import FAMILIES, WRAPPERS, family_target
from tests.tiny import tiny_target

Packed = tuple[dict[str, Tensor], Tensor]
"""Stored tensors by the end of their names, and the weight that they mean."""
GROUP = 32
FLOATS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def words(values: list[int], bits: int) -> list[int]:
    """Integers as one stream of bits in signed 32-bit words, the lowest bit first."""
    stream = sum(value << bits * place for place, value in enumerate(values))
    found = [stream >> 32 * n & 0xFFFFFFFF for n in range(-(-len(values) * bits // 32))]
    return [word - 2**32 if word >= 2**31 else word for word in found]


def rows_of_words(value_RC: Tensor, bits: int) -> Tensor:
    return torch.tensor([words(row, bits) for row in value_RC.int().tolist()], dtype=torch.int32)


def rounded(
    weight_OI: Tensor, bits: int, group_I: Tensor, *, symmetric: bool = False
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unsigned integers ``[O, I]``, scales and zeros ``[O, G]`` (half of the range where it is symmetric), and what
    they mean."""
    groups = int(group_I.max()) + 1
    highest = 2**bits - 1
    low_OG = torch.stack([weight_OI[:, group_I == g].amin(1) for g in range(groups)], 1)
    high_OG = torch.stack([weight_OI[:, group_I == g].amax(1) for g in range(groups)], 1)
    if symmetric:
        high_OG = torch.maximum(high_OG, -low_OG)
        low_OG = -high_OG
    scale_OG = ((high_OG - low_OG) / highest).half().float()
    zero_OG = (-low_OG / scale_OG).round().clamp(1, highest)
    zero_OG = torch.full_like(zero_OG, 2 ** (bits - 1)) if symmetric else zero_OG
    value_OI = (weight_OI / scale_OG[:, group_I] + zero_OG[:, group_I]).round().clamp(0, highest)
    return value_OI, scale_OG, zero_OG, (value_OI - zero_OG[:, group_I]) * scale_OG[:, group_I]


def gptq(
    weight_OI: Tensor, bits: int = 4, offset: int = 1, *, shuffled: bool = True, symmetric: bool = False
) -> Packed:
    inputs = weight_OI.shape[1]
    group_I = torch.arange(inputs) // GROUP
    if shuffled:
        group_I = group_I[torch.randperm(inputs, generator=torch.Generator().manual_seed(inputs))]
    value_OI, scale_OG, zero_OG, meant = rounded(weight_OI, bits, group_I, symmetric=symmetric)
    stored = {
        "qweight": rows_of_words(value_OI, bits).T.contiguous(),
        "qzeros": rows_of_words(zero_OG.T - offset, bits),
        "scales": scale_OG.T.half().contiguous(),
        "g_idx": group_I.int(),
    }
    return {name: tensor for name, tensor in stored.items() if shuffled or name != "g_idx"}, meant


def awq(weight_OI: Tensor) -> Packed:
    group_I = torch.arange(weight_OI.shape[1]) // GROUP
    value_OI, scale_OG, zero_OG, meant = rounded(weight_OI, 4, group_I)

    def interleaved(value_RO: Tensor) -> Tensor:
        order = [8 * word + place for word in range(value_RO.shape[1] // 8) for place in (0, 2, 4, 6, 1, 3, 5, 7)]
        return rows_of_words(value_RO[:, order], 4)

    stored = {"qweight": interleaved(value_OI.T), "qzeros": interleaved(zero_OG.T)}
    return {**stored, "scales": scale_OG.T.half().contiguous()}, meant


def fp8(weight_OI: Tensor, scale_name: str, block: tuple[int, int] | None) -> Packed:
    """With a scale a block, and the last blocks cut off; without one a scale for all."""
    rows, columns = weight_OI.shape
    height, width = block or (rows, columns)
    grid = torch.empty(-(-rows // height), -(-columns // width))
    stored = torch.empty(rows, columns, dtype=torch.float8_e4m3fn)
    meant = torch.empty(rows, columns)
    for i in range(grid.shape[0]):
        for j in range(grid.shape[1]):
            place = (slice(i * height, (i + 1) * height), slice(j * width, (j + 1) * width))
            grid[i, j] = weight_OI[place].abs().max() / 448
            stored[place] = (weight_OI[place] / grid[i, j]).to(torch.float8_e4m3fn)
            meant[place] = stored[place].float() * grid[i, j]
    scale = grid if block else grid.reshape(())
    return {"weight": stored, scale_name: scale, "input_scale": torch.ones(())}, meant


def rows_in_bytes(weight_OI: Tensor, kind: torch.dtype) -> Packed:
    """compressed-tensors' FP8 and INT8, a scale a row."""
    scale_O1 = weight_OI.abs().amax(1, keepdim=True) / (448 if kind.is_floating_point else 127)
    value = weight_OI / scale_O1
    stored = value.to(kind) if kind.is_floating_point else value.round().to(kind)
    return {"weight": stored, "weight_scale": scale_O1}, stored.float() * scale_O1


def packed_integers(weight_OI: Tensor, bits: int = 4, symmetric: bool = False) -> Packed:
    """compressed-tensors' pack-quantized: signed integers moved up by half; zeros packed along the rows."""
    rows, columns = weight_OI.shape
    group_I = torch.arange(columns) // GROUP
    value_OI, scale_OG, zero_OG, meant = rounded(weight_OI, bits, group_I)
    stored = {
        "weight_packed": rows_of_words(value_OI, bits),
        "weight_scale": scale_OG,
        "weight_shape": torch.tensor([rows, columns]),
    }
    if symmetric:
        return stored, (value_OI - 2 ** (bits - 1)) * scale_OG[:, group_I]
    return {**stored, "weight_zero_point": rows_of_words(zero_OG.T, bits).T.contiguous()}, meant


def four_bit_floats(value: Tensor) -> tuple[Tensor, Tensor]:
    """Bytes of two each along the last side, and the values."""
    table = torch.tensor(FLOATS)
    code = (value.abs()[..., None] - table).abs().argmin(-1)
    sign = value < 0
    nibble = (code + 8 * sign).to(torch.uint8)
    return nibble[..., ::2] + 16 * nibble[..., 1::2], table[code] * torch.where(sign, -1.0, 1.0)


def nvfp4(weight_OI: Tensor, names: tuple[str, str], divides: bool) -> Packed:
    """Scales in FP8 for 16 inputs each, and one for those: it divides, or (ModelOpt) multiplies."""
    value_OGK = weight_OI.unflatten(1, (-1, 16))
    of_all = value_OGK.abs().max() / (6 * 448)
    scale_OG = (value_OGK.abs().amax(-1) / 6 / of_all).to(torch.float8_e4m3fn)
    each_OG1 = (scale_OG.float() * of_all)[..., None]
    packed, values = four_bit_floats(value_OGK / each_OG1)
    stored = {names[0]: packed.flatten(1), "weight_scale": scale_OG, names[1]: 1 / of_all if divides else of_all}
    return stored, (values * each_OG1).flatten(1)


def _compressed(kind: str, activations: dict[str, Any] | None = None, **weights: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    return {"quant_method": "compressed-tensors", "format": kind, "ignore": [], "quantization_status": "compressed",
            "config_groups": {"group_0": group}}  # fmt: skip


EACH_TOKEN = {"strategy": "token", "symmetric": True, "dynamic": True}
"""Of activations, which a server rounds as it computes."""
BLOCK = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [24, 48]}
GPTQ: dict[str, Any] = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True, "sym": False}
FORMATS: dict[str, tuple[dict[str, Any], Callable[[Tensor], Packed]]] = {
    "fp8-blocks": (BLOCK, lambda w: fp8(w, "weight_scale_inv", (24, 48))),
    "fp8-tensor": ({"quant_method": "fp8", "activation_scheme": "static"}, lambda w: fp8(w, "weight_scale", None)),
    "gptq": (GPTQ, gptq),
    "gptq-symmetric": (
        {**GPTQ, "desc_act": False, "sym": True}, lambda w: gptq(w, shuffled=False, symmetric=True)
    ),
    "gptq-3": ({**GPTQ, "bits": 3, "desc_act": False}, lambda w: gptq(w, 3, shuffled=False)),
    "gptq-8-v2": ({**GPTQ, "bits": 8, "checkpoint_format": "gptq_v2"}, lambda w: gptq(w, 8, offset=0)),
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}, awq),
    "compressed-fp8": (
        _compressed("float-quantized", num_bits=8, type="float", strategy="channel", symmetric=True),
        lambda w: rows_in_bytes(w, torch.float8_e4m3fn),
    ),
    "compressed-fp8-dynamic": (
        _compressed(
            "float-quantized", {"num_bits": 8, "type": "float", **EACH_TOKEN},
            num_bits=8, type="float", strategy="channel", symmetric=True,
        ),
        lambda w: rows_in_bytes(w, torch.float8_e4m3fn),
    ),
    "compressed-int8": (
        _compressed("int-quantized", num_bits=8, type="int", strategy="channel", symmetric=True),
        lambda w: rows_in_bytes(w, torch.int8),
    ),
    "compressed-w8a8": (
        _compressed(
            "int-quantized", {"num_bits": 8, "type": "int", **EACH_TOKEN},
            num_bits=8, type="int", strategy="channel", symmetric=True,
        ),
        lambda w: rows_in_bytes(w, torch.int8),
    ),
    "compressed-int4": (
        _compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=GROUP, symmetric=False),
        packed_integers,
    ),
    "compressed-int3": (
        _compressed("pack-quantized", num_bits=3, type="int", strategy="group", group_size=GROUP, symmetric=True),
        lambda w: packed_integers(w, 3, symmetric=True),
    ),
    "compressed-nvfp4": (
        _compressed("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16),
        lambda w: nvfp4(w, ("weight_packed", "weight_global_scale"), True),
    ),
    "modelopt-nvfp4": (
        {"quant_method": "modelopt", "quant_algo": "NVFP4"}, lambda w: nvfp4(w, ("weight", "weight_scale_2"), False)
    ),
}  # fmt: skip
"""By name what ``config.json`` says, and the packer of one weight."""


def quantized_target(folder: Path, name: str, *, kind: str = "qwen2") -> tuple[Path, Path]:
    """A tiny target in a format of :data:`FORMATS`, its head quantised too, and one with the weights that it means."""
    make = family_target if kind in (*FAMILIES, *WRAPPERS) and kind not in ("llama", "qwen2", "qwen3") else tiny_target
    target, meant = (make(folder / which, kind) for which in (name, f"{name}-meant"))
    write_weights(meant, quantize(target, name))
    return target, meant


def quantize(target: Path, name: str, keep: tuple[str, ...] = ()) -> dict[str, Tensor]:
    """Store the weights of a target in a format of :data:`FORMATS`, but for those of the layers to ``keep``; returns
    the weights that it means now."""
    config, pack = FORMATS[name]
    stored: dict[str, Tensor] = {}
    plain = load_file(target / "model.safetensors")
    for key, weight in list(plain.items()):
        kept = any(part in key for part in ("embed_tokens", "vision", *keep))
        if weight.dim() == 2 and key.endswith(".weight") and not kept:
            parts, plain[key] = pack(weight)
            stored |= {f"{key.removesuffix('weight')}{part}": tensor for part, tensor in parts.items()}
        else:
            stored[key] = weight
    write_weights(target, stored, {**config, **_left_out(config["quant_method"], keep)})
    return plain


def _left_out(method: str, keep: tuple[str, ...]) -> dict[str, Any]:
    """What each method calls the layers whose weights stay; GPTQ never quantises a head that is not named."""
    if not keep or method == "gptq":
        return {}
    return {"ignore" if method == "compressed-tensors" else "modules_to_not_convert": list(keep)}


def mxfp4_target(folder: Path) -> tuple[Path, Path]:
    """A tiny GPT-OSS whose experts are in MXFP4, and one with the weights that they mean."""
    target, meant = (family_target(folder / which, "gpt-oss") for which in ("mxfp4", "mxfp4-meant"))
    plain = load_file(target / "model.safetensors")
    stored = dict(plain)
    for key in [key for key in plain if key.endswith(("gate_up_proj", "down_proj"))]:
        value_EOGK = stored.pop(key).transpose(1, 2).unflatten(-1, (-1, GROUP))
        exponent_EOG = torch.floor(torch.log2(value_EOGK.abs().amax(-1) / 6)) + 1
        packed, values = four_bit_floats(value_EOGK / 2 ** exponent_EOG[..., None])
        stored |= {f"{key}_blocks": packed, f"{key}_scales": (exponent_EOG + 127).to(torch.uint8)}
        plain[key] = (values * 2 ** exponent_EOG[..., None]).flatten(2).transpose(1, 2).contiguous()
    write_weights(target, stored, {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]})
    write_weights(meant, plain)
    return target, meant


def write_weights(folder: Path, tensors: dict[str, Tensor], quantization: dict[str, Any] | None = None) -> None:
    """Replace the weights of a model's folder, and say in its config how they are quantised."""
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    written = folder / "model.safetensors"
    save_file(contiguous, written.with_suffix(".new"), {"format": "pt"})  # tensors may lie in the file itself
    written.with_suffix(".new").replace(written)
    path = folder / "config.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw if quantization is None else {**raw, "quantization_config": quantization}))
