"""LoRA adapters in peft's format for tiny targets, and a target that adds one while it runs, for comparison."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

PREFIX = "base_model.model."


def make_adapter(
    folder: Path, target: Path, modules: Sequence[str] = ("q_proj", "down_proj"), *, rank: int = 4, **config: Any
) -> Path:
    """Write a random adapter for the linear layers whose names end in ``modules``."""
    ranks: dict[str, int] = config.get("rank_pattern", {})
    tensors: dict[str, Tensor] = {}
    random = torch.Generator().manual_seed(7)
    for name, weight in load_file(target / "model.safetensors").items():
        module = name.removesuffix(".weight")
        if module.endswith(tuple(modules)) and weight.dim() == 2:
            size = next((size for pattern, size in ranks.items() if module.endswith(pattern)), rank)
            tensors[f"{PREFIX}{module}.lora_A.weight"] = torch.randn(size, weight.shape[1], generator=random) / 8
            tensors[f"{PREFIX}{module}.lora_B.weight"] = torch.randn(weight.shape[0], size, generator=random) / 8
    return write_adapter(folder, tensors, r=rank, **config)


def write_adapter(folder: Path, tensors: dict[str, Tensor], **config: Any) -> Path:
    """The two files of an adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "lora_alpha": 8, "r": 4, "inference_mode": True, **config}
    (folder / "adapter_config.json").write_text(json.dumps(content))
    save_file(tensors, folder / "adapter_model.safetensors", {"format": "pt"})
    return folder


def live_model(target: Path, adapter: Path, scales: dict[str, float]) -> nn.Module:
    """The target with B(A(x)) times a scale added to what each of the adapter's layers gives; ``scales`` by the end of
    their names."""
    model: nn.Module = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32).eval()
    parts = load_file(adapter / "adapter_model.safetensors")
    for name, module in model.named_modules():
        a = parts.get(f"{PREFIX}{name}.lora_A.weight")
        if a is not None:
            b = parts[f"{PREFIX}{name}.lora_B.weight"]
            scale = next(scale for end, scale in scales.items() if name.endswith(end))
            module.register_forward_hook(_adding(a, b, scale))
    return model


def _adding(a: Tensor, b: Tensor, scale: float) -> Any:
    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + scale * ((inputs[0] @ a.T) @ b.T)

    return hook
