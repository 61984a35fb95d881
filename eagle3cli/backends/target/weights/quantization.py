"""In which way the weights of a target are quantised, as its config says; no torch is needed to tell."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle3cli.errors import ModelError
from eagle3cli.models.aux_layers import text_part
from eagle3cli.models.files import read_json_object
from eagle3cli.runtime.packages import installed_version

KNOWN = {
    "fp8": "FP8",
    "mxfp8": "MXFP8",
    "mxfp4": "MXFP4",
    "gptq": "GPTQ",
    "awq": "AWQ",
    "compressed-tensors": "compressed-tensors",
    "modelopt": "ModelOpt",
}
"""Ways whose weights are a plain function of the stored tensors, and their names for people."""
BITS = {"fp8": 8, "mxfp8": 8, "mxfp4": 4}
BY_PACKAGE = {
    "aqlm": "aqlm",
    "auto-round": "auto-round",
    "bitnet": "accelerate",
    "bitsandbytes": "bitsandbytes accelerate",
    "eetq": "kernels accelerate",
    "fbgemm_fp8": "fbgemm-gpu accelerate",
    "fp_quant": "fp-quant",
    "higgs": "flute-kernel fast-hadamard-transform",
    "hqq": "hqq",
    "quanto": "optimum-quanto accelerate",
    "quark": "amd-quark",
    "spqr": "spqr-quant",
    "torchao": "torchao",
    "vptq": "vptq accelerate",
}
"""Ways that transformers runs by a package of their own, and the package."""
COMPRESSED_FORMATS = (
    *("float-quantized", "int-quantized", "naive-quantized", "pack-quantized", "nvfp4-pack-quantized"),
    *("mxfp4-pack-quantized", "mxfp8-quantized", "mixed-precision", "dense"),
)
PART_ENDINGS = (
    *("_scale_inv", ".weight_scale", ".qweight", ".qzeros", ".weight_packed", "_blocks", ".qscale_weight"),
    *(".absmax", ".SCB", ".weight_zero_point"),
)
"""Ends of names that quantised weights alone have."""
ANOTHER = f"give the unquantised model, or one in {', '.join(KNOWN.values())} or GGUF"


@dataclass(frozen=True)
class Quantization:
    """How a target's weights are stored; ``config`` is what its ``config.json`` says of it."""

    method: str
    config: Mapping[str, Any]

    @property
    def is_known(self) -> bool:
        """Whether its weights can be dequantised here, on any machine and without a package."""
        return self.method in KNOWN

    @property
    def bits(self) -> int | None:
        """Bits of a weight, without its scales; None where the config does not tell."""
        if self.method in BITS:
            return BITS[self.method]
        if self.method == "modelopt":
            return 8 if self.algorithm == "FP8" else 4
        groups = [args for args in self.weight_groups() if isinstance(args.get("num_bits"), int)]
        own = max((int(args["num_bits"]) for args in groups), default=None)
        bits = own if own is not None else self.config.get("bits", self.config.get("w_bit"))
        return int(bits) if isinstance(bits, int) and bits > 0 else None

    @property
    def algorithm(self) -> str:
        """ModelOpt's name of the way."""
        nested = self.config.get("quantization")
        own = nested if isinstance(nested, dict) else self.config
        return str(own.get("quant_algo") or "").upper()

    @property
    def activations(self) -> bool:
        """Whether a server rounds what the layers read, too, which no dequantised weight shows."""
        if self.method == "compressed-tensors":
            return any(group.get("input_activations") for group in self.groups())
        return self.method in ("fp8", "mxfp8", "modelopt")

    def groups(self) -> list[Mapping[str, Any]]:
        """The config groups of compressed-tensors, each a set of layers in one way."""
        groups = self.config.get("config_groups")
        return [group for group in groups.values() if isinstance(group, dict)] if isinstance(groups, dict) else []

    def weight_groups(self) -> list[Mapping[str, Any]]:
        """What those say of weights."""
        return [group["weights"] for group in self.groups() if isinstance(group.get("weights"), dict)]

    def __str__(self) -> str:
        """The way in words: ``GPTQ, 4 bits, groups of 128``."""
        words = [KNOWN.get(self.method, self.method)]
        kind = self.algorithm if self.method == "modelopt" else self.config.get("format")
        words += [str(kind)] if kind and self.method in ("modelopt", "compressed-tensors") else []
        if self.method not in (*BITS, "modelopt") and self.bits:
            words.append(f"{self.bits} bits")
        block = self.config.get("weight_block_size")
        if isinstance(block, list) and block:
            words.append("blocks of " + " x ".join(map(str, block)))
        sizes = [self.config.get("group_size"), self.config.get("q_group_size")]
        sizes += [args.get("group_size") for args in self.weight_groups()]
        size = next((size for size in sizes if isinstance(size, int) and size > 0), None)
        return ", ".join([*words, *([f"groups of {size}"] if size else [])])


def quantization_of(raw: Mapping[str, Any]) -> Quantization | None:
    """What a target's ``config.json`` says of its weights' quantisation; None for plain weights.

    A .gguf file's weights are plain once it is converted. Raises ModelError where it says something that is no object.
    """
    places = (raw.get("quantization_config"), text_part(raw).get("quantization_config"), raw.get("compression_config"))
    config = next((place for place in places if place), None)
    if config is None:
        return None
    if not isinstance(config, Mapping):
        if not hasattr(config, "to_dict"):  # an object of transformers', behind a load
            raise ModelError(
                "unsupported-quantization",
                f"quantization_config is no object: {config!r:.80}",
                where="config.json",
                fix=ANOTHER,
            )
        config = config.to_dict()
    method = config.get("quant_method")
    method = str(getattr(method, "value", method) or "")
    if not method and (config.get("load_in_4bit") or config.get("load_in_8bit")):
        method = "bitsandbytes"
    if not method and config.get("config_groups"):
        method = "compressed-tensors"
    return None if method == "gguf" else Quantization(method, config)


def folder_quantization(raw: Mapping[str, Any], folder: Path) -> Quantization | None:
    """The same of a target in a folder, where ModelOpt's older versions left it in a file beside ``config.json``."""
    own = quantization_of(raw)
    beside = folder / "hf_quant_config.json"
    if own is not None or not beside.is_file():
        return own
    return Quantization("modelopt", read_json_object(beside))


def check_known(quantization: Quantization | None, where: str) -> None:
    """Raise ModelError for a way that neither this program nor transformers knows, or one whose package is missing."""
    if quantization is None:
        return
    if quantization.is_known:
        if reason := _other_layout(quantization):
            raise ModelError(
                "unsupported-quantization",
                f"its {quantization} weights are not read here: {reason}",
                where=where,
                fix=ANOTHER,
            )
        return
    method = quantization.method
    if not method:
        raise ModelError(
            "unsupported-quantization",
            "its weights are quantised, and quant_method is missing",
            where=where,
            fix=ANOTHER,
        )
    packages = BY_PACKAGE.get(method)
    if packages is None:
        raise ModelError(
            "unsupported-quantization",
            f"its weights are quantised in an unknown way: {method}",
            where=where,
            fix=ANOTHER,
        )
    missing = " ".join(name for name in packages.split() if installed_version(name) is None)
    if missing:
        what = f"its weights are quantised by {method}, which transformers reads with the package {missing}"
        raise ModelError("missing-package", what, where=where, fix=f"pip install {missing}; or {ANOTHER}")


def _other_layout(quantization: Quantization) -> str | None:
    """Why weights of a known way are laid out as no reader here knows; None where they are not."""
    config = quantization.config
    if quantization.method == "gptq":
        layout = config.get("checkpoint_format") or ("marlin" if config.get("is_marlin_format") else "gptq")
        return None if layout in ("gptq", "gptq_v2") else f"their layout is {layout}, one kernel's own"
    if quantization.method == "awq":
        version = str(config.get("version") or config.get("checkpoint_format") or "gemm").lower()
        if quantization.bits not in (None, 4):
            return f"they have {quantization.bits} bits, not 4"
        return None if version == "gemm" else f"their version is {version}, not gemm"
    if quantization.method == "modelopt":
        known = quantization.algorithm in ("FP8", "NVFP4")
        return None if known else f"{quantization.algorithm or 'no quant_algo'} is not FP8 or NVFP4"
    if quantization.method != "compressed-tensors":
        return None
    sparsity = config.get("sparsity_config")
    kinds = [part.get("format") for part in (config, *quantization.groups())]
    kinds += [sparsity.get("format")] if isinstance(sparsity, Mapping) else []
    other = next((str(kind) for kind in kinds if kind and kind not in COMPRESSED_FORMATS), None)
    if other is None and config.get("transform_config"):
        return "transform_config: rotations that run beside the weights"
    return None if other is None else f"their format is {other}"


def check_all_read(unread: Collection[str], quantization: Quantization | None, where: str) -> None:
    """Raise ModelError where tensors that nothing reads are parts of quantised weights."""
    # AWQ divides by scales of their own what some activations make: no weight shows those.
    endings = (*PART_ENDINGS, ".scales") if quantization is not None else PART_ENDINGS
    parts = sorted(name for name in unread if name.endswith(endings))
    if not parts:
        return
    if quantization is None:
        what = f"config.json names no quantisation, but {len(parts)} tensors belong to quantised weights ({parts[0]})"
        raise ModelError(
            "unsupported-quantization", what, where=where, fix="copy config.json again; it lacks quantization_config"
        )
    what = f"{quantization} does not say what {len(parts)} of its tensors mean ({parts[0]})"
    raise ModelError("unsupported-quantization", what, where=where, fix=ANOTHER)
