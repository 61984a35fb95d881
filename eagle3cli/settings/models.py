"""The target, the draft, and the folder a draft is exported to."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from eagle3cli.settings.table import Table, option


class Target(Table):
    """The frozen model that the draft serves."""

    model_path: str = option(
        "", "Target model: a folder, a hub id, or a .gguf file.", "--target-model-path", "--model-path"
    )
    backend: Literal["auto", "hf", "custom"] = option(
        "auto",
        "What runs the target: transformers (hf; also called custom), which auto chooses.",
        "--target-model-backend",
    )
    revision: str | None = option(None, "Hub revision (branch, tag or commit) of the target.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "Weights' type; auto is float32 on a CPU and the checkpoint's own on a GPU."
    )
    device: str = option("auto", "cpu, cuda, cuda:0 ...; auto takes a GPU where there is one.")
    threads: int | None = option(None, "CPU threads for torch; default: one per core.", ge=1)
    trust_remote_code: bool = option(False, "Run Python code that the model's repository ships.")


class Draft(Table):
    """The EAGLE-3 draft model."""

    config: str = option(
        "auto",
        "Draft config: auto (derived from the target), a packaged one (llama-3.1-8b, qwen3-8b ...) or a JSON file; a "
        "file of a few keys changes those of auto.",
        "--draft-model-config",
    )
    vocab_size: int | None = option(None, "Draft vocabulary; overrides the config.", "--draft-vocab-size", ge=1)
    aux_layers: tuple[int, ...] | None = option(
        None, "Target layers whose outputs feed the draft, low to high; default 1, L//2-1, L-4.", "--aux-layers"
    )
    init: Literal["target", "random"] = option(
        "target", "Initial weights: solved from the target's own states, or random.", "--draft-init"
    )
    fc_norm: bool | None = option(
        None, "EAGLE-3.1: norm each auxiliary layer before fc; default: as the draft config says, auto: no."
    )
    norm_output: bool | None = option(
        None, "EAGLE-3.1: the next depth gets the normed state; default: as the draft config says, auto: yes."
    )
    path: str | None = option(
        None, "A trained draft (folder in SGLang's layout).", "--draft-model-path", "--speculative-draft-model-path"
    )


class Export(Table):
    """eagle3 export and import: a draft folder that servers load."""

    output_path: Path = option(Path("runs/draft"), "Folder to write.", "--output-path")
    layout: Literal["sglang", "vllm", "legacy"] = option(
        "sglang",
        "Whose options the draft may use: sglang (vLLM loads the same folder), vllm (what it alone can run, such as an "
        "own embedding), legacy (older servers: one layer, three auxiliary layers, no EAGLE-3.1).",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = option(
        "bfloat16", "Type of the exported weights.", "--export-dtype"
    )
    overwrite: bool = option(False, "Replace an existing folder.")
