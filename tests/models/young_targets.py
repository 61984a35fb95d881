"""The same table for younger families, one model of each class; and the classes that have none, with the reason.

Keys are those of the models' ``config.json``, as copies of these files have them: ai-dynamo/aiconfigurator
``src/aiconfigurator/model_configs`` (Qwen3-Next, Qwen3-VL, Qwen3.5, MiniMax, MiMo, DeepSeek-V3.2, Kimi K2.5, GLM-5,
Gemma 4, Nemotron 3), vLLM's ``tests/transformers_utils`` (GLM-4.7-Flash), ollama's ``x/models/apertus`` (Apertus) and
mlxcel's tests (Ling-lite). Those of CWM, Ernie 4.5, Ministral 3 and MiniCPM3 are transformers' defaults, which are the
model's.
"""

from __future__ import annotations

from typing import Any

Keys = dict[str, Any]


def young(
    hidden: int, mlp: int | None, heads: int, groups: int, layers: int, vocab: int, context: int, **more: Any
) -> Keys:
    """The usual keys; None where there are only narrow experts."""
    sizes = {"hidden_size": hidden, "num_attention_heads": heads, "num_key_value_heads": groups}
    width = {} if mlp is None else {"intermediate_size": mlp}
    rest = {"num_hidden_layers": layers, "vocab_size": vocab, "max_position_embeddings": context}
    return {**sizes, **width, **rest, **more}


QWEN35: Keys = {"head_dim": 256, "rms_norm_eps": 1e-6, "rope_theta": 1e7, "eos_token_id": 248044}
QWEN_VL: Keys = {
    **{"head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 5e6, "bos_token_id": 151643, "eos_token_id": 151645},
    "rope_scaling": {"mrope_interleaved": True, "mrope_section": [24, 20, 20], "rope_type": "default"},
}
MINIMAX: Keys = {"head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 5e6}
GEMMA4: Keys = {
    **{"head_dim": 256, "rms_norm_eps": 1e-6, "bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0},
    "rope_parameters": {
        "full_attention": {"partial_rotary_factor": 0.25, "rope_theta": 1e6, "rope_type": "proportional"},
        "sliding_attention": {"rope_theta": 1e4, "rope_type": "default"},
    },
}
NEMOTRON: Keys = {"head_dim": 128, "rope_theta": 1e4, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def deepseek_yarn(factor: float) -> Keys:
    ends = {"beta_fast": 32, "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0}
    return {"rope_scaling": {"type": "yarn", "factor": factor, "original_max_position_embeddings": 4096, **ends}}


def llama3(factor: float, original: int) -> Keys:
    low_high = {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
    return {
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": factor,
            "original_max_position_embeddings": original,
            **low_high,
        }
    }


LATENT: Keys = {"kv_lora_rank": 512, "v_head_dim": 128, "rope_theta": 1e4, "rms_norm_eps": 1e-6}
GLM5: Keys = {
    **{"kv_lora_rank": 512, "v_head_dim": 256, "rope_theta": 1e6, "rms_norm_eps": 1e-5},
    **{"eos_token_id": [154820, 154827, 154829], "pad_token_id": 154820},
}

YOUNG: dict[str, tuple[str, int, Keys]] = {
    # name: (repository on the hub, parameters of the draft, keys of its config)
    "qwen3-next-80b-a3b": (
        "Qwen/Qwen3-Next-80B-A3B-Instruct",
        138_944_512,
        young(
            *(2048, 5120, 16, 2, 48, 151936, 262144),
            **{"head_dim": 256, "rms_norm_eps": 1e-6, "rope_theta": 1e7, "partial_rotary_factor": 0.25},
            **{"bos_token_id": 151643, "eos_token_id": 151645},
        ),
    ),
    "qwen2-57b-a14b": (
        "Qwen/Qwen2-57B-A14B-Instruct",
        402_798_592,
        young(
            *(3584, 18944, 28, 4, 28, 151936, 32768),
            **{"rms_norm_eps": 1e-6, "rope_theta": 1e6, "bos_token_id": 151643, "eos_token_id": 151645},
        ),
    ),
    "qwen3.5-27b": ("Qwen/Qwen3.5-27B", 609_505_280, young(5120, 17408, 24, 4, 64, 248320, 262144, **QWEN35)),
    "qwen3.5-35b-a3b": ("Qwen/Qwen3.5-35B-A3B", 157_818_880, young(2048, None, 16, 2, 40, 248320, 262144, **QWEN35)),
    "qwen3.5-122b-a10b": (
        "Qwen/Qwen3.5-122B-A10B",
        321_662_976,
        young(3072, None, 32, 2, 48, 248320, 262144, **QWEN35),
    ),
    "qwen3-vl-8b": ("Qwen/Qwen3-VL-8B-Instruct", 399_523_840, young(4096, 12288, 32, 8, 36, 151936, 262144, **QWEN_VL)),
    "qwen3-vl-30b-a3b": (
        "Qwen/Qwen3-VL-30B-A3B-Instruct",
        145_235_968,
        young(2048, 6144, 32, 4, 48, 151936, 262144, **QWEN_VL),
    ),
    "minimax-m2.5": ("MiniMaxAI/MiniMax-M2.5", 309_080_064, young(3072, 1536, 48, 8, 62, 200064, 196608, **MINIMAX)),
    "minimax-m3": ("MiniMaxAI/MiniMax-M3", 926_441_472, young(6144, 3072, 64, 4, 60, 200064, 1048576, **MINIMAX)),
    "mimo-7b": (
        "XiaomiMiMo/MiMo-7B-RL",
        383_795_200,
        young(4096, 11008, 32, 8, 36, 151680, 32768, head_dim=128, rms_norm_eps=1e-5, rope_theta=640000.0),
    ),
    "mimo-v2-flash": (
        "XiaomiMiMo/MiMo-V2-Flash",
        546_324_480,
        young(4096, 16384, 64, 4, 48, 152576, 262144, head_dim=192, v_head_dim=128, rope_theta=5e6),
    ),
    "deepseek-v3.2": (
        "deepseek-ai/DeepSeek-V3.2",
        963_407_872,
        young(7168, 18432, 128, 128, 61, 129280, 163840, bos_token_id=0, eos_token_id=1, **LATENT, **deepseek_yarn(40)),
    ),
    "kimi-k2.5": (
        "moonshotai/Kimi-K2.5",
        963_407_872,
        young(
            *(7168, 18432, 64, 64, 61, 163840, 262144),
            **{**LATENT, "rope_theta": 50000.0, "rms_norm_eps": 1e-5},
            **{"bos_token_id": 163584, "eos_token_id": 163585, "pad_token_id": 163839},
            **deepseek_yarn(64.0),
        ),
    ),
    "glm-4.7-flash": (
        "zai-org/GLM-4.7-Flash",
        170_401_792,
        young(2048, 10240, 20, 20, 47, 154880, 202752, **{**GLM5, "eos_token_id": None, "pad_token_id": None}),
    ),
    "glm-5": ("zai-org/GLM-5", 699_949_056, young(6144, 12288, 64, 64, 78, 154880, 202752, **GLM5)),
    "gemma-4-31b": ("google/gemma-4-31B-it", 825_775_104, young(5376, 21504, 32, 16, 60, 262144, 262144, **GEMMA4)),
    "gemma-4-26b-a4b": (
        "google/gemma-4-26B-A4B-it",
        266_742_784,
        young(2816, 2112, 16, 8, 30, 262144, 262144, **GEMMA4),
    ),
    "nemotron-3-nano-30b-a3b": (
        "nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16",
        230_189_568,
        young(2688, 1856, 32, 2, 52, 131072, 262144, **NEMOTRON),
    ),
    "apertus-8b": (
        "swiss-ai/Apertus-8B-Instruct-2509",
        512_770_048,
        young(4096, 21504, 32, 8, 32, 131072, 65536, rms_norm_eps=1e-5, rope_theta=12e6, **llama3(8.0, 8192)),
    ),
    "ernie-4.5-0.3b": (
        "baidu/ERNIE-4.5-0.3B-PT",
        52_695_040,
        young(1024, 3072, 16, 2, 18, 103424, 131072, head_dim=128, rms_norm_eps=1e-5, rope_theta=5e5, eos_token_id=2),
    ),
    "cwm": (
        "facebook/cwm",
        844_652_544,
        young(
            *(6144, 21504, 48, 8, 64, 128256, 131072),
            **{"head_dim": 128, "rms_norm_eps": 1e-5, "rope_theta": 1e6, "bos_token_id": 128000},
            **{"eos_token_id": [128001, 128008, 128009]},
            **llama3(16.0, 8192),
        ),
    ),
    "ministral-3-8b": (
        "mistralai/Ministral-3-8B-Instruct-2512",
        424_689_664,
        young(
            *(4096, 14336, 32, 8, 34, 131072, 262144),
            **{"head_dim": 128, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 11},
            rope_parameters={
                **{"rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "beta_fast": 32.0, "beta_slow": 1.0},
                **{"original_max_position_embeddings": 16384, "mscale": 1.0, "mscale_all_dim": 1.0},
            },
        ),
    ),
    "minicpm3-4b": (
        "openbmb/MiniCPM3-4B",
        175_646_720,
        young(
            *(2560, 6400, 40, 40, 62, 73448, 32768),
            **{"kv_lora_rank": 256, "v_head_dim": 64, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2},
        ),
    ),
    "ling-lite-1.5": (
        "inclusionAI/Ling-lite-1.5",
        145_235_968,
        young(
            *(2048, 1408, 16, 4, 28, 126464, 32768),
            **{"rms_norm_eps": 1e-6, "rope_theta": 6e5, "eos_token_id": 126081, "pad_token_id": 126081},
        ),
    ),
}
