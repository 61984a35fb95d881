"""The target, the draft, and the folder a draft is exported to."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import model_validator

from eagle3cli.settings.table import Table, option


class TargetSettings(Table):
    """The frozen model that the draft serves."""

    model_path: str = option(
        "", "Target model: a folder, a hub id, or a .gguf file.", "--target-model-path", "--model-path"
    )
    adapter: Path | None = option(
        None,
        "LoRA adapter of the target, a folder in peft's format: merged into a copy of the target, once.",
        "--target-adapter",
    )
    backend: Literal["auto", "hf", "custom", "sglang"] = option(
        "auto",
        "What runs the target: transformers (hf; also called custom) or sglang; auto: by model type, installed "
        "packages and devices.",
        "--target-model-backend",
        "--backend",
    )
    revision: str | None = option(None, "Hub revision (branch, tag or commit) of the target.")
    dtype: Literal["auto", "float32", "bfloat16", "float16", "fastest"] = option(
        "auto",
        "Weights' type; auto is float32 on a CPU and the checkpoint's own on a GPU; fastest: as auto, but bfloat16 on "
        "a CPU that has it.",
    )
    device: str = option("auto", "cpu, cuda, cuda:0 ...; auto takes a GPU where there is one.")
    threads: int | None = option(None, "CPU threads for torch; default: one per core.", ge=1)
    trust_remote_code: bool = option(False, "Run Python code that the model's repository ships.")
    tp_size: int = option(1, "Processes (torchrun) or GPUs that one target is spread over: tensor parallel.", ge=1)
    mem_fraction_static: float | None = option(
        None,
        "Share of a GPU's memory for SGLang's weights and cache; default: what training leaves, else SGLang's own.",
        "--sglang-mem-fraction-static",
        gt=0,
        lt=1,
    )
    device_map: Literal["none", "auto", "balanced", "balanced_low_0", "sequential"] = option(
        "none",
        "Spread the layers over GPUs, memory and disk, as accelerate does (hf); none: all on --device, unless "
        "--max-memory is given.",
    )
    max_memory: tuple[str, ...] = option(
        (), "What each device may hold of the target: 0=20GiB cpu=60GiB; the rest goes to disk."
    )
    offload_folder: Path = option(Path("cache/offload"), "Where --device-map puts weights that the disk holds.")

    @model_validator(mode="after")
    def _one_way_to_spread(self) -> TargetSettings:
        if self.tp_size > 1 and self.spreads:
            raise ValueError("target.tp_size and target.device_map both spread the layers; leave one at its default")
        return self

    @property
    def spreads(self) -> bool:
        """Whether the layers go to several devices."""
        return self.device_map != "none" or bool(self.max_memory)


class DraftSettings(Table):
    """The EAGLE-3 draft model."""

    config: str = option(
        "auto",
        "Draft config: auto (derived from the target), a packaged one (llama-3.1-8b, qwen3-8b ...) or a JSON file; a "
        "file of a few keys changes those of auto.",
        "--draft-model-config",
    )
    vocab_size: int | None = option(
        None, "Draft vocabulary, at most the target's; overrides the config.", "--draft-vocab-size", ge=1
    )
    aux_layers: tuple[int, ...] | None = option(
        None, "Target layers whose outputs feed the draft, low to high; default 1, L//2-1, L-4."
    )
    init: Literal["target", "random", "draft"] = option(
        "target",
        "Initial weights: solved from the target's own states, random, or those of the draft in --draft-model-path.",
        "--draft-init",
    )
    fc_norm: bool | None = option(
        None, "EAGLE-3.1: norm each auxiliary layer before fc; default: as the draft config says, auto: no."
    )
    norm_output: bool | None = option(
        None, "EAGLE-3.1: the next depth gets the normed state; default: as the draft config says, auto: yes."
    )
    window: int | None = option(
        None,
        "Sliding window: the draft attends to so many newest tokens, its own included; default: as the draft config "
        "says, auto: all.",
        "--draft-window",
        ge=1,
    )
    sinks: int | None = option(
        None,
        "Attention sinks: first tokens of a text that it sees besides its window; no server reads them.",
        "--draft-sinks",
        ge=0,
    )
    serve_with: Literal["sglang", "vllm", "llama.cpp", "local"] | None = option(
        None,
        "What will serve the draft: options that it cannot run are left out (norm_output for llama.cpp), or refused "
        "where they are asked for, before the work.",
        "--serve-with",
    )
    path: str | None = option(
        None, "A trained draft (folder in SGLang's layout).", "--draft-model-path", "--speculative-draft-model-path"
    )


class ExportSettings(Table):
    """eagle3 export and import: a draft folder that servers load."""

    output_path: Path = option(Path("runs/draft"), "Folder to write.")
    layout: Literal["sglang", "vllm", "legacy", "speculators", "gguf"] = option(
        "sglang",
        "Whose options the draft may use: sglang (vLLM loads the same folder), vllm (what it alone can run, such as an "
        "own embedding), legacy (older servers: one layer, three auxiliary layers, no EAGLE-3.1), speculators (their "
        "format: vllm serve DRAFT finds the target by itself), gguf (one file for llama.cpp; the default of a draft "
        "that was trained with --serve-with llama.cpp).",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = option(
        "bfloat16", "Type of the exported weights (import keeps the source's).", "--export-dtype"
    )
    outtype: Literal["f32", "bf16", "f16", "q8_0"] | None = option(
        None, "Type of the weights in a gguf file, as llama.cpp calls it; default: that of --export-dtype."
    )
    license: str | None = option(None, "Licence of the draft for its model card, as the hub writes it (apache-2.0).")
    push: str | None = option(None, "Also upload to this model repository of the hub (owner/name; HF_TOKEN).")
    private: bool = option(False, "Make the repository of --push private.")
    overwrite: bool = option(False, "Replace an existing folder.")
