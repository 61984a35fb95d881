"""The same table for the other classes that SGLang and vLLM serve with EAGLE-3, one model of each.

Where keys are from is said with each group. ``FROM_LINEAGE`` is wenhaochai/llm-architecture-lineage ``data/configs``,
copies of the models' ``config.json``. ``DEFAULTS`` are transformers' own, of a configuration that names the model, for
models of which no copy says otherwise: a RoPE base of 1e4 there (beam-1.0, glm-5.3-flash, gpt-neox-20b,
granite-swash-2b, jais-2-8b, kolibri-1, olmo-7b, phi-1) may be but what the class has for models that name none.
"""

from __future__ import annotations

from typing import Any

from tests.models.young_targets import LATENT, Keys, deepseek_yarn, young


def yarn(factor: float, original: int, **more: Any) -> Keys:
    scaling = {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original, **more}
    return {"rope_scaling": scaling}


def ends(begin: int | None, end: int | list[int] | None, padding: int | None = None) -> Keys:
    return {"bos_token_id": begin, "eos_token_id": end, "pad_token_id": padding}


BETAS: Keys = {"beta_fast": 32.0, "beta_slow": 1.0}
KIMI_LATENT: Keys = {**LATENT, "rms_norm_eps": 1e-5, **ends(163584, 163586, 163839)}
HUNYUAN: Keys = {
    **{"head_dim": 128, "rms_norm_eps": 1e-5, "rope_theta": 1e4},
    "rope_scaling": {"type": "dynamic", "alpha": 1000.0, "factor": 1.0},
}
MUSE: Keys = {"rms_norm_eps": 1e-5, "rope_theta": 5e5, **ends(200000, 200001)}
OLMO: Keys = {"rope_theta": 5e5, "rms_norm_eps": 1e-6, **ends(None, 100257, 100277)}

FROM_LINEAGE: dict[str, tuple[str, Keys]] = {
    "command-a-plus": (
        "CohereLabs/command-a-plus-05-2026",
        young(4096, 4096, 128, 8, 32, 262144, 200000, head_dim=128, rope_theta=5e4, bos_token_id=2),
    ),
    "gemma-4-12b": (
        "google/gemma-4-12B-it",
        young(
            *(3840, 15360, 16, 8, 48, 262144, 262144),
            **{"head_dim": 256, "rms_norm_eps": 1e-6, **ends(2, 1, 0)},
            rope_parameters={"full_attention": {"rope_theta": 1e6, "rope_type": "proportional"}},
        ),
    ),
    "kimi-linear-48b-a3b": (
        "moonshotai/Kimi-Linear-48B-A3B-Instruct",
        young(2304, 9216, 32, 32, 27, 163840, 1048576, **KIMI_LATENT),
    ),
    "laguna-xs.2": (
        "poolside/laguna-XS.2",
        young(
            *(2048, 8192, 48, 8, 40, 100352, 262144),
            **{"head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 5e5, **ends(2, [2, 24], 9)},
            **yarn(64.0, 4096, beta_fast=64.0, beta_slow=1.0),
        ),
    ),
    "mellum2-12b-a2.5b": (
        "JetBrains/Mellum2-12B-A2.5B-Thinking",
        young(
            *(2304, 7168, 32, 4, 28, 98304, 131072),
            **{"head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 5e5, **ends(0, 28)},
            **yarn(16.0, 8192, **BETAS),
        ),
    ),
    "mimo-v2.5": (
        "XiaomiMiMo/MiMo-V2.5",
        young(
            *(4096, 16384, 64, 4, 48, 152576, 1048576),
            **{"head_dim": 192, "v_head_dim": 128, "rope_theta": 1e7, **ends(None, 151645, 151643)},
        ),
    ),
    "mistral-large-3": (
        "mistralai/Mistral-Large-3-675B-Instruct-2512",
        young(7168, 16384, 128, 128, 61, 131072, 294912, **LATENT, **yarn(36.0, 8192, **BETAS)),
    ),
    "muse-glimmer-30b": (
        "meta-models/Muse-Glimmer-30B",
        young(6656, 19968, 32, 2, 52, 202048, 131072, head_dim=128, **MUSE),
    ),
    "olmo-2-7b": ("allenai/OLMo-2-1124-7B-Instruct", young(4096, 11008, 32, 32, 32, 100352, 4096, **OLMO)),
    "olmo-3-7b": (
        "allenai/Olmo-3-7B-Instruct",
        young(4096, 11008, 32, 32, 32, 100278, 65536, **OLMO, **yarn(8.0, 8192, **BETAS)),
    ),
    "sarvam-105b": (
        "sarvamai/sarvam-105b",
        young(4096, 16384, 64, 64, 32, 262144, 131072, **LATENT, **ends(None, 1, 0), **deepseek_yarn(40)),
    ),
}

FROM_OTHERS: dict[str, tuple[str, Keys]] = {
    # ai-dynamo/aiconfigurator: aiconfigurator_core/model_configs
    "deepseek-v4-flash": (
        "deepseek-ai/DeepSeek-V4-Flash",
        young(
            *(4096, None, 64, 1, 43, 129280, 1048576),
            **{"head_dim": 512, "o_lora_rank": 1024, "rms_norm_eps": 1e-6, "compress_rope_theta": 16e4, **ends(0, 1)},
            **yarn(16.0, 65536, **BETAS),
        ),
    ),
    "kimi-k3": ("moonshotai/Kimi-K3", young(7168, 33792, 96, 96, 93, 163840, 1048576, **KIMI_LATENT)),
    # mlc-ai/mlc-llm: model/model_preset.py
    "deepseek-moe-16b": (
        "deepseek-ai/deepseek-moe-16b-chat",
        young(2048, 10944, 16, 16, 28, 102400, 4096, rms_norm_eps=1e-6, rope_theta=1e4, **ends(100000, 100001)),
    ),
    "minicpm-2b": (
        "openbmb/MiniCPM-2B-sft-bf16",
        young(2304, 5760, 36, 36, 40, 122753, 4096, rms_norm_eps=1e-5, **ends(1, 2)),
    ),
    "santacoder": (
        "bigcode/gpt_bigcode-santacoder",
        {
            **{"n_embd": 2048, "n_inner": 8192, "n_head": 16, "n_layer": 24, "n_positions": 2048, "vocab_size": 49280},
            **{"multi_query": True, **ends(49152, 49152)},
        },
    ),
    "starcoder2-7b": (
        "bigcode/starcoder2-7b",
        young(4608, 18432, 36, 4, 32, 49152, 16384, rope_theta=1e6, **ends(0, 0)),
    ),
    # the configuration of a fine-tuned model on the hub: Delta-Vector/Austral-AFM-SFT
    "afm-4.5b": (
        "arcee-ai/AFM-4.5B",
        young(
            *(2560, 18432, 20, 4, 36, 128005, 65536),
            **{"head_dim": 128, "rms_norm_eps": 1e-5, "rope_theta": 1e4, **ends(128000, 128003)},
            **yarn(20.0, 4096, **BETAS, mscale=1.0),
        ),
    ),
    # the models' own pages on the hub
    "granite-3.1-8b": (
        "ibm-granite/granite-3.1-8b-instruct",
        young(4096, 12800, 32, 8, 40, 49155, 131072, rms_norm_eps=1e-5, rope_theta=1e7, **ends(0, 0, 0)),
    ),
    "telechat2-7b": (
        "Tele-AI/TeleChat2-7B-32K",
        young(4096, 12288, 32, 32, 30, 131072, 32768, rope_theta=1e6, **ends(1, 2, 3)),
    ),
    # NVIDIA-NeMo's documentation of Megatron Bridge; its tests (Qwen2.5-VL, whose depth is that of Qwen2.5-7B)
    "ling-mini-2.0": (
        "inclusionAI/Ling-mini-2.0",
        young(
            *(2048, 5120, 16, 4, 20, 157184, 32768),
            **{"head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 6e5, **ends(None, 156892, 156892)},
        ),
    ),
    "qwen2.5-vl-7b": (
        "Qwen/Qwen2.5-VL-7B-Instruct",
        young(
            *(3584, 18944, 28, 4, 28, 152064, 128000),
            **{"rms_norm_eps": 1e-6, "rope_theta": 1e6, **ends(151643, 151645)},
            rope_scaling={"type": "mrope", "mrope_section": [16, 24, 24]},
        ),
    ),
    # copies in tests: lablup/mlxcel, macMLX, tokenspeed and others, two of them where there are two
    "hunyuan-7b": (
        "tencent/Hunyuan-7B-Instruct",
        young(4096, 14336, 32, 8, 32, 128167, 262144, **HUNYUAN, **ends(127958, 127960, 127961)),
    ),
    "hunyuan-a13b": ("tencent/Hunyuan-A13B-Instruct", young(4096, 3072, 32, 8, 32, 128167, 32768, **HUNYUAN)),
    "internlm3-8b": (
        "internlm/internlm3-8b-instruct",
        young(
            *(4096, 10240, 32, 2, 48, 128512, 32768),
            **{"head_dim": 128, "rms_norm_eps": 1e-5, "rope_theta": 5e7, **ends(1, 2, 2)},
            rope_scaling={"rope_type": "dynamic", "factor": 6.0},
        ),
    ),
    "seed-oss-36b": (
        "ByteDance-Seed/Seed-OSS-36B-Instruct",
        young(
            *(5120, 27648, 80, 8, 64, 155136, 524288),
            **{"head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 1e7, **ends(0, 2, 1)},
        ),
    ),
    "smollm3-3b": (
        "HuggingFaceTB/SmolLM3-3B",
        young(2048, 11008, 16, 4, 36, 128256, 65536, rms_norm_eps=1e-6, rope_theta=5e6, **ends(128000, 128001, 128004)),
    ),
    "telechat3-36b": (
        "TeleAI/TeleChat3-36B-Thinking",
        young(
            *(6144, 24576, 48, 8, 64, 131072, 32768),
            **{"head_dim": 128, "rms_norm_eps": 1e-5, "rope_theta": 1e6, **ends(1, 2, 3)},
            rope_scaling={"type": "telechat3-yarn", "factor": 4.0, "original_max_position_embeddings": 8192, **BETAS},
        ),
    ),
    "trinity-mini": (
        "arcee-ai/Trinity-Mini",
        young(2048, 6144, 32, 4, 32, 200192, 131072, head_dim=128, rms_norm_eps=1e-5, rope_theta=1e4),
    ),
}

DEFAULTS: dict[str, tuple[str, Keys]] = {
    "beam-1.0": ("reflection/Beam-1.0-501B-A23B", young(5120, 20480, 48, 8, 52, 151936, 8192, head_dim=128)),
    "emu3-chat": (
        "BAAI/Emu3-Chat-hf",
        young(4096, 14336, 32, 8, 32, 184622, 9216, rms_norm_eps=1e-5, rope_theta=1e6, **ends(151849, 151850, 151643)),
    ),
    "flex-olmo-7x7b": ("allenai/FlexOlmo-7x7B-1T", young(4096, 11008, 32, 32, 32, 100352, 4096, **OLMO)),
    "glm-4-9b-chat": (
        "zai-org/glm-4-9b-chat-hf",
        young(
            *(4096, 13696, 32, 2, 40, 151552, 131072),
            # 1e4 times the rope_ratio of 500 in the original's config (class ChatGLM); the default knows none.
            **{"head_dim": 128, "rms_norm_eps": 1.5625e-07, "rope_theta": 5e6},
            **ends(None, [151329, 151336, 151338], 151329),
        ),
    ),
    "glm-5.3-flash": (
        "zai-org/GLM-5.3-Flash",
        young(
            *(4096, 12288, 64, 64, 45, 154880, 1048576),
            **{"kv_lora_rank": 512, "v_head_dim": 256, "rms_norm_eps": 1e-5, "pad_token_id": 154820},
        ),
    ),
    "gpt-neox-20b": ("EleutherAI/gpt-neox-20b", young(6144, 24576, 64, 64, 44, 50432, 2048, **ends(0, 2))),
    "granite-swash-2b": (
        "ibm-granite/granite-swash-2b",
        young(2560, 8192, 20, 4, 24, 100352, 8192, rms_norm_eps=1e-5, **ends(100257, 100257)),
    ),
    "jais-2-8b": (
        "inceptionai/Jais-2-8B-Chat",
        young(3328, 26624, 26, 26, 32, 150272, 8192, head_dim=128, **ends(0, 150024)),
    ),
    "kolibri-1": ("Aleph-Alpha/Kolibri-1", young(2560, None, 48, 4, 50, 128000, 262144, head_dim=128)),
    "lightonocr-1b": (
        "lightonai/LightOnOCR-1B-1025",
        young(1024, 3072, 16, 8, 28, 151936, 40960, head_dim=128, rms_norm_eps=1e-6, rope_theta=1e6),
    ),
    "longcat-flash": (
        "meituan-longcat/LongCat-Flash-Chat",
        {
            **{"hidden_size": 6144, "ffn_hidden_size": 12288, "num_attention_heads": 64, "num_layers": 28},
            **{"vocab_size": 131072, "max_position_embeddings": 131072, "kv_lora_rank": 512, "v_head_dim": 128},
            **{"rms_norm_eps": 1e-5, "rope_theta": 1e7, **ends(1, 2)},
        },
    ),
    "muse-spark": (
        "meta-models/Muse-Spark-Open-816B-A42B",
        young(8192, 16384, 128, 16, 62, 202048, 1048576, head_dim=64, **MUSE),
    ),
    "olmo-7b": ("allenai/OLMo-7B-hf", young(4096, 11008, 32, 32, 32, 50304, 2048, **ends(None, 50279, 1))),
    "phi-1": ("microsoft/phi-1", young(2048, 8192, 32, 32, 24, 51200, 2048)),
    "sarvam-30b": (
        "sarvamai/sarvam-30b",
        young(
            4096, 8192, 64, 4, 19, 262144, 131072, head_dim=64, rms_norm_eps=1e-6, rope_theta=8e6, **ends(None, 1, 0)
        ),
    ),
}
PARAMETERS = {
    "command-a-plus": 600_850_432,
    "gemma-4-12b": 422_722_560,
    "kimi-linear-48b-a3b": 176_366_592,
    "laguna-xs.2": 162_013_184,
    "mellum2-12b-a2.5b": 172_237_824,
    "mimo-v2.5": 546_324_480,
    "mistral-large-3": 919_367_680,
    "muse-glimmer-30b": 833_251_328,
    "olmo-2-7b": 434_126_848,
    "olmo-3-7b": 434_126_848,
    "sarvam-105b": 449_855_488,
    "deepseek-v4-flash": 449_855_488,
    "kimi-k3": 1_293_709_312,
    "deepseek-moe-16b": 174_727_168,
    "minicpm-2b": 166_634_496,
    "santacoder": 142_090_240,
    "starcoder2-7b": 539_117_568,
    "afm-4.5b": 268_052_480,
    "granite-3.1-8b": 405_815_296,
    "telechat2-7b": 449_855_488,
    "ling-mini-2.0": 126_361_600,
    "qwen2.5-vl-7b": 402_798_592,
    "hunyuan-7b": 424_689_664,
    "hunyuan-a13b": 449_855_488,
    "internlm3-8b": 361_775_104,
    "seed-oss-36b": 845_434_880,
    "smollm3-3b": 162_537_472,
    "telechat3-36b": 901_275_648,
    "trinity-mini": 145_235_968,
    "beam-1.0": 656_691_200,
    "emu3-chat": 424_689_664,
    "flex-olmo-7x7b": 434_126_848,
    "glm-4-9b-chat": 404_242_432,
    "glm-5.3-flash": 416_301_056,
    "gpt-neox-20b": 1_027_104_768,
    "granite-swash-2b": 189_409_280,
    "jais-2-8b": 483_079_168,
    "kolibri-1": 224_798_720,
    "lightonocr-1b": 55_840_768,
    "longcat-flash": 674_783_232,
    "muse-spark": 1_101_037_568,
    "olmo-7b": 434_126_848,
    "phi-1": 157_818_880,
    "sarvam-30b": 336_609_280,
}
"""Of each draft."""
FURTHER: dict[str, tuple[str, int, Keys]] = {
    name: (repository, PARAMETERS[name], keys)
    for name, (repository, keys) in (FROM_LINEAGE | FROM_OTHERS | DEFAULTS).items()
}
