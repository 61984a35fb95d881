"""The packaged draft configs, one JSON file for each size of target: ``--draft-model-config qwen3-8b``."""

from __future__ import annotations

import difflib
import json
from fnmatch import fnmatch
from importlib import resources
from pathlib import Path
from typing import Any

from eagle3cli.errors import ModelError

TARGET_CLASSES = {
    "afm-*": "ArceeForCausalLM",
    "beam-*": "BeamForCausalLM",
    "command-a-plus": "Cohere2MoeForCausalLM",
    "deepseek-moe-*": "DeepseekForCausalLM",
    "deepseek-v4*": "DeepseekV4ForCausalLM",
    "emu3-*": "Emu3ForConditionalGeneration",
    "flex-olmo-*": "FlexOlmoForCausalLM",
    "gemma-4-12b": "Gemma4UnifiedForConditionalGeneration",
    "glm-4-9b-chat": "GlmForCausalLM",
    "glm-5.3-flash": "Glm5NextForConditionalGeneration",
    "gpt-neox-*": "GPTNeoXForCausalLM",
    "granite-swash-*": "GraniteSWAForCausalLM",
    "granite-3.1-*": "GraniteForCausalLM",
    "hunyuan-a13b": "HunYuanMoEV1ForCausalLM",
    "hunyuan-*": "HunYuanDenseV1ForCausalLM",
    "internlm3-*": "InternLM3ForCausalLM",
    "jais-2-*": "Jais2ForCausalLM",
    "kimi-k3": "KimiK3ForConditionalGeneration",
    "kimi-linear-*": "KimiLinearForCausalLM",
    "kolibri-*": "Kolibri1ForCausalLM",
    "laguna-*": "LagunaForCausalLM",
    "lightonocr-*": "LightOnOCRForConditionalGeneration",
    "ling-mini-2*": "BailingMoeV2ForCausalLM",
    "longcat-flash": "LongcatFlashForCausalLM",
    "mellum2-*": "MellumForCausalLM",
    "mimo-v2.5": "MiMoV2ForCausalLM",
    "minicpm-*": "MiniCPMForCausalLM",
    "mistral-large-3": "MistralLarge3ForCausalLM",
    "muse-glimmer-*": "MuseGlimmerForConditionalGeneration",
    "muse-spark": "MuseSparkForConditionalGeneration",
    "olmo-2-*": "Olmo2ForCausalLM",
    "olmo-3-*": "Olmo3ForCausalLM",
    "olmo-*": "OlmoForCausalLM",
    "phi-1": "PhiForCausalLM",
    "qwen2.5-vl-*": "Qwen2_5_VLForConditionalGeneration",
    "santacoder": "GPTBigCodeForCausalLM",
    "sarvam-105b": "SarvamMLAForCausalLM",
    "sarvam-*": "SarvamMoEForCausalLM",
    "seed-oss-*": "SeedOssForCausalLM",
    "smollm3-*": "SmolLM3ForCausalLM",
    "starcoder2-*": "Starcoder2ForCausalLM",
    "telechat2-*": "TeleChat2ForCausalLM",
    "telechat3-*": "TeleChat3ForCausalLM",
    "trinity-*": "AfmoeForCausalLM",
    "apertus-*": "ApertusForCausalLM",
    "cwm": "CwmForCausalLM",
    "deepseek-v2*": "DeepseekV2ForCausalLM",
    "deepseek-v3.2*": "DeepseekV32ForCausalLM",
    "deepseek-*": "DeepseekV3ForCausalLM",
    "ernie-4.5-*": "Ernie4_5ForCausalLM",
    "gemma-3-1b": "Gemma3ForCausalLM",
    "gemma-3-*": "Gemma3ForConditionalGeneration",
    "gemma-4-*": "Gemma4ForConditionalGeneration",
    "kimi-k2.5": "KimiK25ForConditionalGeneration",
    "kimi-k2*": "DeepseekV3ForCausalLM",
    "glm-4.5*": "Glm4MoeForCausalLM",
    "glm-4.7-flash": "Glm4MoeLiteForCausalLM",
    "glm-4-*": "Glm4ForCausalLM",
    "glm-5": "GlmMoeDsaForCausalLM",
    "gpt-oss-*": "GptOssForCausalLM",
    "llama-4-*": "Llama4ForConditionalGeneration",
    "llama-3*": "LlamaForCausalLM",
    "ling-lite-*": "BailingMoeForCausalLM",
    "mimo-7b": "MiMoForCausalLM",
    "mimo-v2-flash": "MiMoV2FlashForCausalLM",
    "minicpm3-*": "MiniCPM3ForCausalLM",
    "minimax-m2*": "MiniMaxM2ForCausalLM",
    "minimax-m3": "MiniMaxM3SparseForConditionalGeneration",
    "ministral-3-*": "Mistral3ForConditionalGeneration",
    "mistral-*": "MistralForCausalLM",
    "mixtral-*": "MixtralForCausalLM",
    "nemotron-3-*": "NemotronHForCausalLM",
    "phi-4*": "Phi3ForCausalLM",
    "qwen2-*-a*b": "Qwen2MoeForCausalLM",
    "qwen2.5-*": "Qwen2ForCausalLM",
    "qwq-*": "Qwen2ForCausalLM",
    "qwen3-next-*": "Qwen3NextForCausalLM",
    "qwen3-vl-*-a*b": "Qwen3VLMoeForConditionalGeneration",
    "qwen3-vl-*": "Qwen3VLForConditionalGeneration",
    "qwen3.5-*-a*b": "Qwen3_5MoeForConditionalGeneration",
    "qwen3.5-*": "Qwen3_5ForConditionalGeneration",
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


def read_config_file(source: str) -> dict[str, Any]:
    """The JSON of a draft config that is named: a file, or a packaged one. Raises ModelError where there is none."""
    path = Path(source)
    if not path.exists():
        packaged = packaged_configs()
        if source in packaged:
            path = packaged[source]
        else:
            close = difflib.get_close_matches(source, packaged, n=1)
            fix = f"did you mean {close[0]}? " if close else ""
            fix += f"give a JSON file, auto, or one of: {', '.join(packaged)}"
            raise ModelError("no-such-path", "no such draft config", where=source, fix=fix)
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise ModelError("bad-json", f"not a JSON draft config: {error}", where=source) from error
    if not isinstance(raw, dict):
        raise ModelError("bad-json", "not a JSON object", where=source)
    return raw
