"""Weights into a transformers model: on one device, spread over several with the rest off-loaded, or over ranks."""

from __future__ import annotations

import copy
import gc
import importlib.util
from collections.abc import Collection
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, PreTrainedModel

from eagle3cli.backends.target.head import read_target_tensors
from eagle3cli.backends.target.logits import Head, make_head
from eagle3cli.backends.target.missing import load_whole
from eagle3cli.backends.target.weights.checkpoint import Checkpoint
from eagle3cli.backends.target.weights.files import tensor_files
from eagle3cli.backends.target.weights.quantization import (
    Quantization,
    check_all_read,
    check_known,
    folder_quantization,
)
from eagle3cli.errors import ModelError, UsageError
from eagle3cli.runtime.report import Reporter, Silent
from eagle3cli.settings.models import TargetSettings

BITS = {"mxfp4": 4, "fp8": 8}
"""Bits of a weight in the checkpoints that transformers keeps on a GPU by kernels of the hub, and can dequantise."""
INSTALL = "pip install "
IS_OLD = transformers.__version__.startswith("4.")


def load_model(
    target: TargetSettings,
    config: Any,
    device: torch.device,
    dtype: torch.dtype,
    report: Reporter = Silent(),  # noqa: B008
) -> PreTrainedModel:
    """The frozen model; ``config`` is its transformers config. Raises what transformers raises, UsageError for a
    package that is missing."""
    where: dict[str, Any] = {}
    is_dequantized = _is_dequantized(target_quantization(target, config), device)
    if target.tp_size > 1:
        where = _tensor_parallel(target.tp_size)
    elif target.spreads:
        where = _device_map(target)
    elif quantization_bits(config) is not None and device.type == "cuda" and not is_dequantized:
        where = {"device_map": {"": device}}  # its kernels arrange the weights there, while they are read
    model: PreTrainedModel
    if is_dequantized:
        model = _dequantized(target, config, dtype, where, report)
    else:
        options = {"dtype": dtype, **where, **_without_kernels(config, device, report)}
        model = _whole(target, _auto_classes(config), config, options)
    model = model.eval().requires_grad_(False)
    if not where:
        nn.Module.to(model, device)
    gc.collect()
    return model


def _auto_classes(config: Any) -> list[Any]:
    """The classes that may read a target, the first that finds all of its weights counts."""
    wrapped = type(config) in AutoModelForImageTextToText._model_mapping
    # Some text models do not read what their wrapper wrote (Emu3).
    return [_auto_class(config), *([AutoModelForImageTextToText] if wrapped else [])]


def _whole(target: TargetSettings, classes: list[Any], config: Any, options: dict[str, Any]) -> PreTrainedModel:
    """The model with all of its weights from the files. Raises ModelError where they lack some."""

    def load(auto_class: Any, other: Any | None) -> Any:
        return auto_class.from_pretrained(
            target.model_path,
            revision=target.revision,
            trust_remote_code=target.trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
            **(options if other is None else {**options, "config": other}),
        )

    config = options.get("config", config)
    for auto_class in classes[:-1]:
        with suppress(ModelError):
            return load_whole(partial(load, auto_class), config, target.model_path)
    return load_whole(partial(load, classes[-1]), config, target.model_path)


def _is_dequantized(quantization: Quantization | None, device: torch.device) -> bool:
    """Whether weights are quantised, and are dequantised here: all that transformers does not keep on a GPU."""
    if quantization is None or not quantization.is_known:
        return False
    return device.type != "cuda" or not is_kept_by_transformers(quantization)


def is_kept_by_transformers(quantization: Quantization) -> bool:
    """Whether transformers has kernels for such weights: of FP8 those with scales of blocks."""
    return quantization.method == "mxfp4" or bool(
        quantization.method == "fp8" and quantization.config.get("weight_block_size")
    )


def _dequantized(
    target: TargetSettings, config: Any, dtype: torch.dtype, where: dict[str, Any], report: Reporter
) -> PreTrainedModel:
    """The model with its quantised weights as plain ones of ``dtype``, read one by one. Raises ModelError where the
    files lack some."""
    checkpoint = Checkpoint(target.model_path, config.to_dict(), revision=target.revision)
    told = f"the target's weights are {checkpoint.quantization}: dequantised to {str(dtype).removeprefix('torch.')}"
    if checkpoint.quantization is not None and checkpoint.quantization.activations:
        told += "; a server rounds what the layers read, too, which these states do not show"
    report.info(told)
    config = copy.deepcopy(config)
    for part in (config, config.get_text_config()):
        for key in ("quantization_config", "compression_config"):
            if hasattr(part, key):
                delattr(part, key)
    own: Any = type(meta_model(config, trust_remote_code=target.trust_remote_code))

    def load(other: Any | None) -> Any:
        state = dict(checkpoint) if IS_OLD else checkpoint.lazily()  # transformers 4 takes tensors alone
        options = {"config": other or config, "state_dict": state, "dtype": dtype, **where}
        return own.from_pretrained(None, output_loading_info=True, **options)

    model = load_whole(load, config, target.model_path)
    model.config.name_or_path = target.model_path
    return model


def target_quantization(target: TargetSettings, config: Any) -> Quantization | None:
    """How the target's weights are quantised; ``config`` is its transformers config. Raises ModelError where that is
    not known, or where the config keeps it back."""
    quantization = folder_quantization(config.to_dict(), Path(target.model_path).expanduser())
    check_known(quantization, target.model_path)
    if quantization is None:
        names: Collection[str] = ()
        with suppress(ModelError):  # files under names of their own are left to transformers
            names = tensor_files(target.model_path, target.revision)
        check_all_read(names, None, target.model_path)
    return quantization


def quantization_bits(config: Any) -> int | None:
    """Bits of a weight in a checkpoint in MXFP4 or FP8; None of any other. ``config`` is its transformers config."""
    return BITS.get(_quantization(config) or "")


def keeps_quantized(quantization: Quantization) -> bool:
    """Whether transformers keeps the weights as they are on a GPU of this machine: its kernels are installed."""
    missing = [name for name in ("kernels", "triton") if importlib.util.find_spec(name) is None]
    return is_kept_by_transformers(quantization) and not missing


def _quantization(config: Any) -> str | None:
    """The way in which a checkpoint's weights are quantised."""
    own = getattr(config, "quantization_config", None) or {}
    method = own.get("quant_method") if isinstance(own, dict) else own.quant_method
    return None if method is None else str(getattr(method, "value", method))


def _without_kernels(config: Any, device: torch.device, report: Reporter) -> dict[str, Any]:
    """Arguments that have weights in MXFP4 or FP8 dequantised while they are read onto a GPU; none where their kernels
    are installed, or on a CPU, where transformers does so by itself."""
    bits = quantization_bits(config)
    if bits is None or device.type != "cuda":
        return {}
    method = _quantization(config)
    if importlib.util.find_spec("accelerate") is None:
        raise UsageError(
            "missing-package",
            f"a target in {method} needs accelerate",
            where="target.model_path",
            fix=INSTALL + "accelerate",
        )
    missing = " ".join(name for name in ("kernels", "triton") if importlib.util.find_spec(name) is None)
    if not missing:
        return {}
    report.warn(
        f"the target's {method} weights are dequantised and take {16 // bits} times their memory: their kernels need "
        f"{missing} ({INSTALL}{missing})"
    )
    config = copy.deepcopy(config)
    own = config.quantization_config
    config.quantization_config = {**(own if isinstance(own, dict) else own.to_dict()), "dequantize": True}
    return {"config": config}


def meta_model(config: Any, *, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model that a config describes, with shapes alone: no weight takes memory."""
    with torch.device("meta"):
        model: PreTrainedModel = _auto_class(config).from_config(config, trust_remote_code=trust_remote_code)
    return model


def embedding_and_head(model: PreTrainedModel, target: TargetSettings, dtype: torch.dtype) -> tuple[Tensor, Head]:
    """Embedding and head; read from the files where the model's own are off-loaded, sharded or quantised."""
    linear = model.get_output_embeddings()
    embedding_VH = _plain(model.get_input_embeddings().weight)
    head_VH = _plain(getattr(linear, "weight", None))
    bias_V = getattr(linear, "bias", None)
    if embedding_VH is None or head_VH is None:
        tensors = read_target_tensors(target.model_path, revision=target.revision)
        tied = tensors["head"] is tensors["embedding"]
        embedding_VH = tensors["embedding"].to(_input_device(model), dtype)
        head_VH = embedding_VH if tied else tensors["head"].to(dtype)
        bias_V = tensors["head_bias"].to(dtype) if "head_bias" in tensors else None
    device = embedding_VH.device
    bias_V = None if bias_V is None else bias_V.detach().to(device)
    return embedding_VH, make_head(model.config.to_dict(), head_VH.to(device), bias_V)


def placement(model: PreTrainedModel, device: torch.device) -> str:
    """Where the weights are, in words."""
    spread = getattr(model, "hf_device_map", None) or {}
    places = [str(place) if not isinstance(place, int) else f"cuda:{place}" for place in spread.values()]
    if places and set(places) != {str(device)}:
        return ", ".join(f"{places.count(place)} modules on {place}" for place in dict.fromkeys(places))
    return str(device)


def _plain(weight: object) -> Tensor | None:
    """``weight`` where it is an ordinary tensor in memory."""
    if not isinstance(weight, Tensor) or type(weight) not in (Tensor, nn.Parameter) or weight.device.type == "meta":
        return None
    return weight.detach() if weight.is_floating_point() and weight.element_size() > 1 else None


def _input_device(model: PreTrainedModel) -> torch.device:
    """The device that takes the tokens."""
    hook = getattr(model.get_input_embeddings(), "_hf_hook", None)
    device = getattr(hook, "execution_device", None)
    return torch.device(device) if device is not None else model.device


def _auto_class(config: Any) -> Any:
    """The auto class that knows this config with a language-model head: a causal LM, else a multi-modal wrapper.

    Raises ModelError for one of several language models (Qwen3-Omni: a thinker and a talker).
    """
    if getattr(config, "thinker_config", None) is not None:
        what = f"{config.model_type} is a thinker and a talker, and transformers runs no pass of both"
        raise ModelError(
            "unloadable-target", what, where=str(config.name_or_path), fix="use a target that is one language model"
        )
    remote = getattr(config, "auto_map", None) or {}
    if type(config) in AutoModelForCausalLM._model_mapping or "AutoModelForCausalLM" in remote:
        return AutoModelForCausalLM
    if type(config) in AutoModelForImageTextToText._model_mapping:
        return AutoModelForImageTextToText
    any_kind = getattr(transformers, "AutoModelForMultimodalLM", None)  # of sound, too; transformers 5 has it
    return any_kind if any_kind is not None and type(config) in any_kind._model_mapping else AutoModelForCausalLM


def _tensor_parallel(size: int) -> dict[str, Any]:
    """Arguments that shard the layers by the model's own plan, over each group of ``size`` neighbouring ranks."""
    import torch.distributed as dist

    ranks = dist.get_world_size() if dist.is_initialized() else 1
    if ranks % size:
        fix = f"start them with --gpus {size}, or torchrun --nproc-per-node {size} -m eagle3cli ..."
        raise UsageError(
            "process-count",
            f"a target over {size} ranks needs {size} processes; there are {ranks}",
            where="--tp-size",
            fix=fix,
        )
    if importlib.util.find_spec("accelerate") is None:
        raise UsageError(
            "missing-package", "needs accelerate with transformers", where="--tp-size", fix="pip install accelerate"
        )
    config = _distributed_config(tp_size=size, dp_replicate_size=ranks // size)
    if config is None and ranks > size:
        what = (
            f"transformers {transformers.__version__} cannot give each of {ranks // size} groups of processes a target"
        )
        raise UsageError("package-too-old", what, where="--tp-size", fix="pip install 'transformers>=5.24'")
    config = config or _distributed_config(tp_size=size)
    return {"tp_plan": "auto"} if config is None else {"distributed_config": config}


def _distributed_config(**options: Any) -> Any | None:
    """How transformers spreads a model; None where this version does not know the options."""
    try:
        from transformers.distributed.configuration_utils import DistributedConfig

        return DistributedConfig(**options)
    except (ImportError, TypeError):
        return None


def _device_map(target: TargetSettings) -> dict[str, Any]:
    """Arguments that spread the layers over the devices, with what does not fit in memory or on disk."""
    if importlib.util.find_spec("accelerate") is None:
        raise UsageError("missing-package", "needs accelerate", where="--device-map", fix="pip install accelerate")
    limits = {}
    for text in target.max_memory:
        name, _, size = text.partition("=")
        if not name or not size:
            raise UsageError(
                "invalid-value", f"not DEVICE=SIZE: {text}", where="--max-memory", fix="write 0=20GiB cpu=60GiB"
            )
        limits[int(name) if name.isdigit() else name] = size
    return {
        "device_map": "auto" if target.device_map == "none" else target.device_map,
        "max_memory": limits or None,
        "offload_folder": str(target.offload_folder),
    }
