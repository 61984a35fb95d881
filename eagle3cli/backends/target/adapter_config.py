"""What a folder in peft's format says of its LoRA adapter: scales by module, and why one cannot be merged.

Imports no torch: a wrong folder is told before that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

from eagle3cli.errors import ModelError
from eagle3cli.models.files import read_json_object
from eagle3cli.runtime.files import well_formed
from eagle3cli.runtime.provenance import digest_file

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
MERGE = "merge it with peft (merge_and_unload, save_pretrained) and give the result as --target-model-path"

FORMULA = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora", "fan_in_fan_out", "lora_bias")
"""Options that the merged weights are computed with."""
HARMLESS = (
    *("auto_mapping", "base_model_name_or_path", "bias", "ensure_weight_tying", "exclude_modules", "inference_mode"),
    *("init_lora_weights", "layers_pattern", "layers_to_transform", "lora_dropout", "modules_to_save", "peft_type"),
    *("peft_version", "revision", "target_modules", "task_type", "loftq_config", "eva_config", "corda_config"),
    *("megatron_config", "megatron_core", "qalora_group_size", "runtime_config"),
)
"""Options of training alone, or told by which tensors there are."""
CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Beginnings of ways to start an adapter that take something out of the base's own weights."""


@dataclass(frozen=True)
class AdapterConfig:
    """``adapter_config.json`` of a LoRA adapter that can be merged."""

    folder: Path
    raw: dict[str, Any]

    def scale(self, module: str, rank: int) -> float:
        """The factor of B @ A for a module whose A has ``rank`` rows. Raises ModelError where the config says
        another rank."""
        said = int(self._of("rank_pattern", module, self.raw["r"]))
        if said != rank:
            what = f"{module} has rank {rank}, {CONFIG} says {said}"
            raise ModelError("damaged-file", what, where=str(self.folder), fix="copy the adapter's two files again")
        alpha = float(self._of("alpha_pattern", module, self.raw["lora_alpha"]))
        return alpha / sqrt(rank) if self.raw.get("use_rslora") else alpha / rank

    def _of(self, patterns: str, module: str, default: Any) -> Any:
        """The value of the first pattern that a module's name fits, as peft finds it."""
        for pattern, value in (self.raw.get(patterns) or {}).items():
            if re.match(pattern if pattern.startswith("^") else rf"(.*\.)?({pattern})$", module):
                return value
        return default

    @property
    def transposed(self) -> bool:
        """Whether the weights are ``[in, out]`` (GPT-2's)."""
        return bool(self.raw.get("fan_in_fan_out"))

    @property
    def keeps_tied(self) -> bool:
        """Whether a trained embedding was the head's too."""
        return bool(self.raw.get("ensure_weight_tying"))

    def digest(self) -> str:
        """Tells one adapter from another, by its content."""
        return "".join(digest_file(self.folder / name)[:16] for name in (CONFIG, WEIGHTS))


def read_adapter_config(folder: Path) -> AdapterConfig:
    """The config of the adapter in ``folder``; raises ModelError where it is none that can be merged, saying why."""
    if not (folder / CONFIG).is_file():
        what = f"no {CONFIG}: not an adapter" if folder.is_dir() else "no such folder"
        raise ModelError(
            "adapter-unusable", what, where=str(folder), fix="give the folder that peft's save_pretrained() wrote"
        )
    raw = read_json_object(folder / CONFIG)
    with well_formed(folder / CONFIG, "the config of an adapter", "copy it again"):
        reason = _why_not(raw)
    if reason is not None:
        raise ModelError("adapter-unusable", f"cannot be merged: {reason}", where=str(folder), fix=MERGE)
    if not (folder / WEIGHTS).is_file():
        fix = f"load it with peft, and save_pretrained() writes {WEIGHTS}"
        raise ModelError("adapter-unusable", f"no {WEIGHTS}; no other file is read", where=str(folder), fix=fix)
    return AdapterConfig(folder, raw)


def _why_not(raw: Mapping[str, Any]) -> str | None:
    """Why an adapter of this config cannot be merged; None where it can. Raises what a malformed config raises."""
    if str(raw.get("peft_type")).upper() != "LORA":
        return f"peft_type is {raw.get('peft_type')}, not LORA"
    start = raw.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_THE_BASE):
        return f"it was started with init_lora_weights {start}, which changes the target's own weights"
    unknown = sorted(key for key, value in raw.items() if key not in (*FORMULA, *HARMLESS) and value)
    if unknown:
        return f"{', '.join(unknown)} {'is' if len(unknown) == 1 else 'are'} set, and no plain LoRA has that"
    int(raw["r"]), float(raw["lora_alpha"])
    for patterns, kind in (("rank_pattern", int), ("alpha_pattern", float)):
        for pattern, value in (raw.get(patterns) or {}).items():
            kind(value)
            try:
                re.compile(pattern)
            except re.error as error:
                return f"{patterns} holds {pattern!r}, which is no pattern ({error})"
    return None
