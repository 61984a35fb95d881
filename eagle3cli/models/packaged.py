"""The packaged draft configs, one JSON file for each size of target: ``--draft-model-config qwen3-8b``."""

from __future__ import annotations

from fnmatch import fnmatch
from importlib import resources
from pathlib import Path

TARGET_CLASSES = {
    "deepseek-v2*": "DeepseekV2ForCausalLM",
    "deepseek-*": "DeepseekV3ForCausalLM",
    "gemma-3-1b": "Gemma3ForCausalLM",
    "gemma-3-*": "Gemma3ForConditionalGeneration",
    "glm-4.5*": "Glm4MoeForCausalLM",
    "glm-4-*": "Glm4ForCausalLM",
    "gpt-oss-*": "GptOssForCausalLM",
    "llama-4-*": "Llama4ForConditionalGeneration",
    "llama-3*": "LlamaForCausalLM",
    "mistral-*": "MistralForCausalLM",
    "mixtral-*": "MixtralForCausalLM",
    "phi-4*": "Phi3ForCausalLM",
    "qwen2.5-*": "Qwen2ForCausalLM",
    "qwq-*": "Qwen2ForCausalLM",
    "qwen3-*-a*b": "Qwen3MoeForCausalLM",
    "qwen3-*": "Qwen3ForCausalLM",
}
"""What ``architectures`` of the targets' ``config.json`` says, by the names of the draft configs; the first counts."""


def packaged_configs() -> dict[str, Path]:
    """The packaged draft configs by name."""
    folder = Path(str(resources.files("eagle3cli.models") / "configs"))
    return {path.stem: path for path in sorted(folder.glob("*.json"))}


def packaged_target_class(name: str) -> str | None:
    """The class of the target that a packaged draft config is for; None where it is not listed."""
    return next((kind for pattern, kind in TARGET_CLASSES.items() if fnmatch(name, pattern)), None)
