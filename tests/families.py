"""Tiny random targets of the real architecture classes, one for each family that people train drafts for."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.tiny import VOCAB, tiny_tokenizer

COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.1,
}
EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
ROUTED: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
LATENT: dict[str, Any] = {  # DeepSeek: keys and values through a narrow latent, of unequal widths
    "num_key_value_heads": 4, "q_lora_rank": None, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
    "v_head_dim": 16, "head_dim": 8, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "moe_intermediate_size": 32, "first_k_dense_replace": 1, "moe_layer_freq": 1,
}  # fmt: skip
WINDOW: dict[str, Any] = {"sliding_window": 8}
YARN: dict[str, Any] = {
    "rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128,
    "beta_fast": 32, "beta_slow": 1,
}  # fmt: skip
YARN_SCALED: dict[str, Any] = {**YARN, "mscale": 0.707, "mscale_all_dim": 0.707}
LLAMA3: dict[str, Any] = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}  # fmt: skip
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 128,
    "short_factor": [1.0] * 6, "long_factor": [2.0] * 6, "partial_rotary_factor": 0.75,
}  # fmt: skip

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", {"rope_parameters": LLAMA3}),
    "llama-tied": ("LlamaConfig", {"tie_word_embeddings": True}),
    "llama4": (
        "Llama4TextConfig",
        {**EXPERTS, "intermediate_size_mlp": 96, "attention_chunk_size": 8, "num_experts_per_tok": 1,
         "interleave_moe_layer_step": 2, "attn_temperature_tuning": True, "floor_scale": 4},
    ),
    "mistral": ("MistralConfig", WINDOW),
    "mixtral": ("MixtralConfig", EXPERTS),
    "qwen2": ("Qwen2Config", {}),  # Qwen2.5 and QwQ are of this class too
    "qwen2-window": ("Qwen2Config", {**WINDOW, "use_sliding_window": True, "max_window_layers": 3}),
    "qwen2-moe": ("Qwen2MoeConfig", {**ROUTED, "shared_expert_intermediate_size": 32}),
    "qwen3": ("Qwen3Config", {"tie_word_embeddings": True}),
    "qwen3-moe": ("Qwen3MoeConfig", ROUTED),
    "phi3": ("Phi3Config", {**WINDOW, "pad_token_id": 0}),  # Phi-4 is of this class too
    "phi4-mini": ("Phi3Config", {"tie_word_embeddings": True, "rope_parameters": LONGROPE}),
    "gpt-oss": ("GptOssConfig", {**EXPERTS, **WINDOW, "rope_parameters": YARN}),
    "deepseek-v2": (
        "DeepseekV2Config",
        {**LATENT, "topk_method": "greedy", "rope_parameters": YARN_SCALED, "scoring_func": "softmax",
         "n_group": 1, "topk_group": 1},
    ),
    "deepseek-v3": (
        "DeepseekV3Config",
        {**LATENT, "q_lora_rank": 24, "n_group": 2, "topk_group": 1, "rope_parameters": YARN_SCALED},
    ),
    "gemma": ("GemmaConfig", {"tie_word_embeddings": True}),
    "gemma2": (
        "Gemma2Config",
        {**WINDOW, "tie_word_embeddings": True, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0,
         "query_pre_attn_scalar": 16},
    ),
    "gemma3": ("Gemma3TextConfig", {**WINDOW, "tie_word_embeddings": True, "query_pre_attn_scalar": 16}),
    "glm": ("GlmConfig", {}),
    "glm4": ("Glm4Config", {}),
    "glm4-moe": (
        "Glm4MoeConfig",
        {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "first_k_dense_replace": 1},
    ),
    "cohere": ("CohereConfig", {"tie_word_embeddings": True, "logit_scale": 0.25, "use_qk_norm": True}),
    "cohere2": ("Cohere2Config", {**WINDOW, "tie_word_embeddings": True, "logit_scale": 0.5}),
    "granite": (
        "GraniteConfig",
        {"logits_scaling": 4.0, "embedding_multiplier": 6.0, "residual_multiplier": 0.3, "attention_multiplier": 0.1},
    ),
    "granite-moe": ("GraniteMoeConfig", {**EXPERTS, "logits_scaling": 3.0}),
    "olmo2": ("Olmo2Config", {}),
    "nemotron": ("NemotronConfig", {}),
    "phi": ("PhiConfig", {}),  # a head with a bias, and a final LayerNorm
    "gpt-neox": ("GPTNeoXConfig", {}),
    "minicpm3": (
        "MiniCPM3Config",
        {"dim_model_base": 32, "q_lora_rank": 24, "kv_lora_rank": 16, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8,
         "v_head_dim": 16, "num_key_value_heads": 4, "head_dim": 24},
    ),
    "qwen3-next": ("Qwen3NextConfig", {**ROUTED, "linear_num_value_heads": 4, "linear_num_key_heads": 2,
                                       "shared_expert_intermediate_size": 32}),
    "falcon-h1": ("FalconH1Config", {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8,
                                     "lm_head_multiplier": 0.5}),
    "nanochat": ("NanoChatConfig", {}),
    "starcoder2": ("Starcoder2Config", {**WINDOW, "tie_word_embeddings": True}),
    "seed-oss": ("SeedOssConfig", {}),
    "smollm3": ("SmolLM3Config", {}),
}  # fmt: skip


TOWER: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
QWEN_TOWER: dict[str, Any] = {
    "depth": 1, "hidden_size": 32, "intermediate_size": 32, "num_heads": 2, "out_hidden_size": 64,
}  # fmt: skip
MROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
IMAGES: dict[str, Any] = {
    "image_token_id": 300, "video_token_id": 301, "vision_start_token_id": 302, "vision_end_token_id": 303,
}  # fmt: skip

WRAPPERS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "llama4-vision": (
        "Llama4Config", "Llama4ForConditionalGeneration", FAMILIES["llama4"][1],
        {"vision_config": {**TOWER, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}},
    ),
    "gemma3-vision": (
        "Gemma3Config", "Gemma3ForConditionalGeneration", FAMILIES["gemma3"][1],
        {"vision_config": TOWER, "mm_tokens_per_image": 4, "image_token_index": 300},
    ),
    "mistral3": (
        "Mistral3Config", "Mistral3ForConditionalGeneration", {"model_type": "mistral"},
        {"vision_config": {"model_type": "pixtral", **TOWER, "head_dim": 16}, "image_token_index": 300},
    ),
    "qwen2.5-vl": (
        "Qwen2_5_VLConfig", "Qwen2_5_VLForConditionalGeneration", {"rope_parameters": MROPE},
        {"vision_config": {**QWEN_TOWER, "fullatt_block_indexes": [0]}, **IMAGES},
    ),
    "qwen3-vl": (
        "Qwen3VLConfig", "Qwen3VLForConditionalGeneration", {"rope_parameters": MROPE},
        {"vision_config": {**QWEN_TOWER, "deepstack_visual_indexes": [0]}, **IMAGES},
    ),
}  # fmt: skip
"""Multi-modal models: class of the config, class of the model, the text model's own values, the wrapper's."""


DECODED = (
    *("llama", "llama-tied", "llama4", "mistral", "mixtral", "qwen2", "qwen3", "qwen3-moe", "phi3", "phi4-mini"),
    *("gpt-oss", "deepseek-v2", "deepseek-v3", "gemma2", "gemma3", "glm4", "cohere2", "granite", "gemma3-vision"),
)
"""Decoded by the local engine in ``backends/target/test_young_families.py``, as the young ones are. Qwen2.5 and QwQ are
of Qwen2's class, Phi-4 of Phi-3's."""
QUICK = ("llama", "qwen3", "qwen3-moe", "gemma3", "deepseek-v2", "gpt-oss")
"""Stand for the many in `make test`."""


def by_family(names: Iterable[str]) -> list[Any]:
    """Parameters for a test of each family; those that are not QUICK are slow."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


def family_config(name: str) -> Any:
    """The config of a tiny target of this family."""
    import transformers

    from tests.young_families import SHALLOW, YOUNG_FAMILIES, YOUNG_WRAPPERS

    families = {**FAMILIES, **YOUNG_FAMILIES}
    wrappers = {**WRAPPERS, **YOUNG_WRAPPERS}
    common = COMMON | (SHALLOW if name in YOUNG_FAMILIES or name in YOUNG_WRAPPERS else {})
    class_name = (wrappers if name in wrappers else families)[name][0]
    if not hasattr(transformers, class_name):
        pytest.skip(f"transformers {transformers.__version__} has no {class_name}")
    if name in wrappers:
        _, _, text, own = wrappers[name]
        if transformers.__version__.startswith("4.") and "rope_parameters" in text:
            text = {**text, "rope_scaling": text["rope_parameters"]}  # its name there
        return getattr(transformers, class_name)(text_config={**common, **text}, **own)
    _, own = families[name]
    return getattr(transformers, class_name)(**{**common, **own})


def family_target(folder: Path, name: str, seed: int = 0) -> Path:
    """Write a random target of this family with a tokenizer to ``folder``; returns ``folder``."""
    import torch
    import transformers

    from tests.young_families import YOUNG_WRAPPERS

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = family_config(name)
        wrapper = WRAPPERS.get(name) or YOUNG_WRAPPERS.get(name)
        if wrapper is not None:
            model = getattr(transformers, wrapper[1])(config).float()
        else:
            model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        for parameter in model.parameters():  # norms, biases and sinks start as ones and zeros: nothing would show
            if parameter.ndim == 1:
                parameter.data.add_(torch.randn_like(parameter) * 0.2)
    model.generation_config.eos_token_id = [2]
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
