"""What the ``config.json`` of every target says for which a draft config is packaged: one table, with its source.

Only keys that a draft is derived from stand here. They are those of the models' repositories on the hub (second
column), compared with copies of these files in public code: pytorch/torchtune ``models/*/_model_builders.py`` (Llama,
Qwen2.5, Qwen3, Phi-4), mlc-ai/mlc-llm ``model/model_preset.py`` (Llama 3.1 and 3.2, Mistral, Mixtral 8x7B, Gemma 3 1B,
DeepSeek-V2-Lite), alibaba/InferSim ``hf_configs`` (Qwen3-30B-A3B and 235B-A22B, DeepSeek-V3), transformers'
``convert_gemma3_weights.py`` (Gemma 3), and tests of other projects that quote them (GPT-OSS, Qwen3-Coder, Llama 4,
Phi-4-mini, GLM-4-9B).

``python -m tests.models.targets`` writes ``eagle3cli/models/configs/``, which ``test_packaged.py`` compares with it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.models.further_targets import FURTHER
from tests.models.young_targets import YOUNG

Keys = dict[str, Any]


def shape(hidden: int, mlp: int, heads: int, groups: int, layers: int, vocab: int, context: int, **more: Any) -> Keys:
    """The usual keys in their usual order."""
    names = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "num_hidden_layers")
    usual = dict(zip(names, (hidden, mlp, heads, groups, layers), strict=True))
    return {**usual, "vocab_size": vocab, "max_position_embeddings": context, **more}


def llama3(factor: float, low: float = 1.0, high: float = 4.0) -> Keys:
    scaling = {"rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high}
    return {"rope_scaling": {**scaling, "original_max_position_embeddings": 8192}}


def yarn(factor: float, **more: Any) -> Keys:
    scaling = {"type": "yarn", "factor": factor, "original_max_position_embeddings": 4096}
    return {"rope_scaling": {**scaling, "beta_fast": 32, "beta_slow": 1, **more}}


LLAMA: Keys = {"rope_theta": 500000.0, "rms_norm_eps": 1e-5, "bos_token_id": 128000, "eos_token_id": 128009}
LLAMA31: Keys = {**LLAMA, "eos_token_id": [128001, 128008, 128009]}
LLAMA4: Keys = {
    **{"intermediate_size_mlp": 16384, "head_dim": 128, "rope_theta": 500000.0, "rms_norm_eps": 1e-5},
    **{"bos_token_id": 200000, "eos_token_id": [200001, 200007, 200008], "pad_token_id": 200018},
}
QWEN: Keys = {"rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "bos_token_id": 151643, "eos_token_id": 151645}
QWEN3: Keys = {**QWEN, "head_dim": 128}
CODER: Keys = {**QWEN3, "rope_theta": 10000000.0}
DEEPSEEK: Keys = {"rope_theta": 10000.0, "rms_norm_eps": 1e-6, "kv_lora_rank": 512, "v_head_dim": 128}
GPT_OSS: Keys = {
    **{"head_dim": 64, "rope_theta": 150000.0, "rms_norm_eps": 1e-5, "eos_token_id": 200002, "pad_token_id": 199999},
    **yarn(32.0, truncate=False),
}
GEMMA: Keys = {
    **{"head_dim": 256, "rope_theta": 1000000.0, "rms_norm_eps": 1e-6, "rope_local_base_freq": 10000.0},
    **{"bos_token_id": 2, "eos_token_id": [1, 106], "pad_token_id": 0},
}
GEMMA_LONG: Keys = {**GEMMA, "rope_scaling": {"rope_type": "linear", "factor": 8.0}}
MISTRAL: Keys = {"rope_theta": 1000000.0, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2}
GLM: Keys = {
    **{"head_dim": 128, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-5, "rope_theta": 10000.0},
    **{"eos_token_id": [151329, 151336, 151338], "pad_token_id": 151329},
}
LONGROPE: Keys = {
    **{"original_max_position_embeddings": 4096, "partial_rotary_factor": 0.75, "rope_theta": 10000.0},
    **{"rope_scaling": {"type": "longrope", "short_factor": [1.0] * 48, "long_factor": [2.0] * 48}},
    **{"rms_norm_eps": 1e-5, "bos_token_id": 199999, "eos_token_id": 199999, "pad_token_id": 199999},
}
"""Phi-4-mini; the values of the two tables play no part in a draft."""

L3, L4, Q2, Q25, G = 128256, 202048, 151936, 152064, 262208

TARGETS: dict[str, tuple[str, int, Keys]] = {
    # name: (repository on the hub, parameters of the draft, keys of its config)
    "llama-3-8b": (
        "meta-llama/Meta-Llama-3-8B-Instruct",
        424_689_664,
        shape(4096, 14336, 32, 8, 32, L3, 8192, **LLAMA),
    ),
    "llama-3-70b": (
        "meta-llama/Meta-Llama-3-70B-Instruct",
        1_403_027_456,
        shape(8192, 28672, 64, 8, 80, L3, 8192, **LLAMA),
    ),
    "llama-3.1-8b": (
        "meta-llama/Llama-3.1-8B-Instruct",
        424_689_664,
        shape(4096, 14336, 32, 8, 32, L3, 131072, **LLAMA31, **llama3(8.0)),
    ),
    "llama-3.1-70b": (
        "meta-llama/Llama-3.1-70B-Instruct",
        1_403_027_456,
        shape(8192, 28672, 64, 8, 80, L3, 131072, **LLAMA31, **llama3(8.0)),
    ),
    "llama-3.2-1b": (
        "meta-llama/Llama-3.2-1B-Instruct",
        145_235_968,
        shape(2048, 8192, 32, 8, 16, L3, 131072, head_dim=64, **LLAMA31, **llama3(32.0)),
    ),
    "llama-3.2-3b": (
        "meta-llama/Llama-3.2-3B-Instruct",
        243_019_776,
        shape(3072, 8192, 24, 8, 28, L3, 131072, head_dim=128, **LLAMA31, **llama3(32.0)),
    ),
    "llama-3.3-70b": (
        "meta-llama/Llama-3.3-70B-Instruct",
        1_403_027_456,
        shape(8192, 28672, 64, 8, 80, L3, 131072, **LLAMA31, **llama3(8.0)),
    ),
    "llama-4-scout": (
        "meta-llama/Llama-4-Scout-17B-16E-Instruct",
        593_776_640,
        shape(5120, 8192, 40, 8, 48, L4, 10485760, **LLAMA4, **llama3(16.0, 1.0, 1.0)),
    ),
    "llama-4-maverick": (
        "meta-llama/Llama-4-Maverick-17B-128E-Instruct",
        593_776_640,
        shape(5120, 8192, 40, 8, 48, L4, 1048576, **LLAMA4),
    ),
    "qwen2.5-0.5b": ("Qwen/Qwen2.5-0.5B-Instruct", 47_025_664, shape(896, 4864, 14, 2, 24, Q2, 32768, **QWEN)),
    "qwen2.5-1.5b": ("Qwen/Qwen2.5-1.5B-Instruct", 106_174_464, shape(1536, 8960, 12, 2, 28, Q2, 32768, **QWEN)),
    "qwen2.5-3b": ("Qwen/Qwen2.5-3B-Instruct", 160_440_320, shape(2048, 11008, 16, 2, 36, Q2, 32768, **QWEN)),
    "qwen2.5-7b": ("Qwen/Qwen2.5-7B-Instruct", 402_798_592, shape(3584, 18944, 28, 4, 28, Q25, 32768, **QWEN)),
    "qwen2.5-14b": ("Qwen/Qwen2.5-14B-Instruct", 554_455_040, shape(5120, 13824, 40, 8, 48, Q25, 32768, **QWEN)),
    "qwen2.5-32b": ("Qwen/Qwen2.5-32B-Instruct", 766_791_680, shape(5120, 27648, 40, 8, 64, Q25, 32768, **QWEN)),
    "qwen2.5-72b": ("Qwen/Qwen2.5-72B-Instruct", 1_425_047_552, shape(8192, 29568, 64, 8, 80, Q25, 32768, **QWEN)),
    "qwq-32b": (
        "Qwen/QwQ-32B",
        766_791_680,
        shape(5120, 27648, 40, 8, 64, Q25, 40960, **{**QWEN, "rms_norm_eps": 1e-5}),
    ),
    "qwen3-0.6b": ("Qwen/Qwen3-0.6B", 55_840_768, shape(1024, 3072, 16, 8, 28, Q2, 40960, **QWEN3)),
    "qwen3-1.7b": ("Qwen/Qwen3-1.7B", 136_847_360, shape(2048, 6144, 16, 8, 28, Q2, 40960, **QWEN3)),
    "qwen3-4b": ("Qwen/Qwen3-4B", 218_245_120, shape(2560, 9728, 32, 8, 36, Q2, 40960, **QWEN3)),
    "qwen3-8b": ("Qwen/Qwen3-8B", 399_523_840, shape(4096, 12288, 32, 8, 36, Q2, 40960, **QWEN3)),
    "qwen3-14b": ("Qwen/Qwen3-14B", 609_505_280, shape(5120, 17408, 40, 8, 40, Q2, 40960, **QWEN3)),
    "qwen3-32b": ("Qwen/Qwen3-32B", 782_520_320, shape(5120, 25600, 64, 8, 64, Q2, 40960, **QWEN3)),
    "qwen3-30b-a3b": (
        "Qwen/Qwen3-30B-A3B",
        145_235_968,
        shape(2048, 6144, 32, 4, 48, Q2, 40960, moe_intermediate_size=768, **QWEN3),
    ),
    "qwen3-235b-a22b": (
        "Qwen/Qwen3-235B-A22B",
        441_466_880,
        shape(4096, 12288, 64, 4, 94, Q2, 40960, moe_intermediate_size=1536, **QWEN3),
    ),
    "qwen3-coder-30b-a3b": (
        "Qwen/Qwen3-Coder-30B-A3B-Instruct",
        141_107_200,
        shape(2048, 5472, 32, 4, 48, Q2, 262144, moe_intermediate_size=768, **CODER),
    ),
    "qwen3-coder-480b-a35b": (
        "Qwen/Qwen3-Coder-480B-A35B-Instruct",
        1_014_521_856,
        shape(6144, 8192, 96, 8, 62, Q2, 262144, moe_intermediate_size=2560, **CODER),
    ),
    "phi-4": (
        "microsoft/phi-4",
        622_612_480,
        shape(
            5120,
            17920,
            40,
            10,
            40,
            100352,
            16384,
            rope_theta=250000.0,
            rms_norm_eps=1e-5,
            bos_token_id=100257,
            eos_token_id=100265,
            pad_token_id=100349,
        ),
    ),
    "phi-4-mini": (
        "microsoft/Phi-4-mini-instruct",
        243_019_776,
        shape(3072, 8192, 24, 8, 32, 200064, 131072, **LONGROPE),
    ),
    "deepseek-v2-lite": (
        "deepseek-ai/DeepSeek-V2-Lite-Chat",
        166_338_560,
        shape(
            2048,
            10944,
            16,
            16,
            27,
            102400,
            163840,
            bos_token_id=100000,
            eos_token_id=100001,
            **DEEPSEEK,
            **yarn(40, mscale=0.707, mscale_all_dim=0.707),
        ),
    ),
    "deepseek-v3": (
        "deepseek-ai/DeepSeek-V3",
        963_407_872,
        shape(
            7168,
            18432,
            128,
            128,
            61,
            129280,
            163840,
            bos_token_id=0,
            eos_token_id=1,
            **DEEPSEEK,
            **yarn(40, mscale=1.0, mscale_all_dim=1.0),
        ),
    ),
    "deepseek-r1": (
        "deepseek-ai/DeepSeek-R1",
        963_407_872,
        shape(
            7168,
            18432,
            128,
            128,
            61,
            129280,
            163840,
            bos_token_id=0,
            eos_token_id=1,
            **DEEPSEEK,
            **yarn(40, mscale=1.0, mscale_all_dim=1.0),
        ),
    ),
    "gpt-oss-20b": ("openai/gpt-oss-20b", 257_875_200, shape(2880, 2880, 64, 8, 24, 201088, 131072, **GPT_OSS)),
    "gpt-oss-120b": ("openai/gpt-oss-120b", 257_875_200, shape(2880, 2880, 64, 8, 36, 201088, 131072, **GPT_OSS)),
    "gemma-3-1b": ("google/gemma-3-1b-it", 69_456_384, shape(1152, 6912, 4, 1, 26, 262144, 32768, **GEMMA)),
    "gemma-3-4b": ("google/gemma-3-4b-it", 206_448_640, shape(2560, 10240, 8, 4, 34, G, 131072, **GEMMA_LONG)),
    "gemma-3-12b": ("google/gemma-3-12b-it", 422_722_560, shape(3840, 15360, 16, 8, 48, G, 131072, **GEMMA_LONG)),
    "gemma-3-27b": (
        "google/gemma-3-27b-it",
        715_674_624,
        shape(5376, 21504, 32, 16, 62, G, 131072, **{**GEMMA_LONG, "head_dim": 128}),
    ),
    "mistral-7b": (
        "mistralai/Mistral-7B-Instruct-v0.3",
        424_689_664,
        shape(4096, 14336, 32, 8, 32, 32768, 32768, **MISTRAL),
    ),
    "mixtral-8x7b": (
        "mistralai/Mixtral-8x7B-Instruct-v0.1",
        424_689_664,
        shape(4096, 14336, 32, 8, 32, 32000, 32768, **MISTRAL),
    ),
    "mixtral-8x22b": (
        "mistralai/Mixtral-8x22B-Instruct-v0.1",
        750_280_704,
        shape(6144, 16384, 48, 8, 56, 32768, 65536, **MISTRAL),
    ),
    "glm-4-9b": ("zai-org/GLM-4-9B-0414", 404_242_432, shape(4096, 13696, 32, 2, 40, 151552, 32768, **GLM)),
    "glm-4.5-air": (
        "zai-org/GLM-4.5-Air",
        433_340_416,
        shape(4096, 10944, 96, 8, 46, 151552, 131072, **{**GLM, "rope_theta": 1000000.0}),
    ),
    "glm-4-32b": ("zai-org/GLM-4-32B-0414", 872_964_096, shape(6144, 23040, 48, 8, 61, 151552, 32768, **GLM)),
}


LATENT_HEADS: Keys = {"qk_nope_head_dim": 128, "qk_rope_head_dim": 64}
V3_HEADS: Keys = {**LATENT_HEADS, "q_lora_rank": 1536}
KIMI_YARN: Keys = {
    "rope_scaling": {
        **{"type": "yarn", "factor": 64.0, "original_max_position_embeddings": 4096},
        **{"beta_fast": 1.0, "beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0},
    }
}
KIMI: Keys = shape(
    *(7168, 18432, 64, 64, 61, 163840, 262144),
    **{**DEEPSEEK, **V3_HEADS, "rope_theta": 50000.0, "rms_norm_eps": 1e-5},
    **{"bos_token_id": 163584, "eos_token_id": 163586, "pad_token_id": 163839},
    **KIMI_YARN,
)
"""Kimi K2 of September 2025, and Thinking: as a report on moonshotai/Kimi-K2-Instruct-0905 and NVIDIA's Model Optimizer
quote them. The K2 of July has half the context, K2.5 another YaRN: for these there is ``mla``."""
TARGETS |= YOUNG | FURTHER
LATENT: dict[str, tuple[str, int, Keys]] = {
    "deepseek-v2-lite-mla": (
        "deepseek-ai/DeepSeek-V2-Lite-Chat",
        165_029_888,
        {**TARGETS["deepseek-v2-lite"][2], **LATENT_HEADS, "q_lora_rank": None},
    ),
    "deepseek-v3-mla": ("deepseek-ai/DeepSeek-V3", 982_153_216, {**TARGETS["deepseek-v3"][2], **V3_HEADS}),
    "deepseek-r1-mla": ("deepseek-ai/DeepSeek-R1", 982_153_216, {**TARGETS["deepseek-r1"][2], **V3_HEADS}),
    "kimi-k2-mla": ("moonshotai/Kimi-K2-Instruct-0905", 896_169_984, KIMI),
}
"""Drafts of latent attention (MLA): the target's repository, parameters of the draft, keys of the target's config."""
ANY_LATENT = "mla"
"""The config that takes all but the kind of attention from the target."""


def main() -> None:
    """Write the packaged configs anew."""
    import eagle3cli.models.packaged
    from eagle3cli.models.config import DraftConfig
    from eagle3cli.models.layers.sizes import ARCHITECTURE

    folder = Path(eagle3cli.models.packaged.__file__).parent / "configs"
    for name, (_, _, keys) in TARGETS.items():
        text = json.dumps(DraftConfig.from_target(keys).to_sglang(), indent=1)
        (folder / f"{name}.json").write_text(text + "\n")
    for name, (_, _, keys) in LATENT.items():
        text = json.dumps(DraftConfig.from_target(keys, latent={}).to_sglang(), indent=1)
        (folder / f"{name}.json").write_text(text + "\n")
    (folder / f"{ANY_LATENT}.json").write_text(json.dumps({"architectures": [ARCHITECTURE]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
