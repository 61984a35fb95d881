"""Tiny random targets of younger classes that SGLang or vLLM serves with EAGLE-3, one for each way of being different.

``REFUSED`` are those that local decoding must refuse. Classes that transformers makes of one that is tried anyway
(InternLM3: Llama; Sarvam: DeepSeek-V3 and GLM-4.5) are left out.
"""

from __future__ import annotations

from typing import Any

from tests.families import EXPERTS, FAMILIES, IMAGES, LATENT, MROPE, QWEN_TOWER, ROUTED, TOWER, WINDOW
from tests.tiny import VOCAB

SHALLOW: dict[str, Any] = {"num_hidden_layers": 5}
INDEXED: dict[str, Any] = {"q_lora_rank": 24, "index_topk": 8, "index_n_heads": 16, "index_head_dim": 16}
"""Layers that choose the keys they attend to; so many heads, because with few of them scores of exactly 0 tie."""
LINEAR: dict[str, Any] = {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
}  # fmt: skip
SHARED: dict[str, Any] = {"shared_expert_intermediate_size": 32}
GEMMA4: dict[str, Any] = {
    **WINDOW, "vocab_size_per_layer_input": VOCAB, "hidden_size_per_layer_input": 8, "global_head_dim": 32,
    "num_kv_shared_layers": 2, "tie_word_embeddings": True, "final_logit_softcapping": 3.0,
    "layer_types": ["sliding_attention", "full_attention", *["sliding_attention"] * 2, "full_attention"],
}  # fmt: skip
MAMBA: dict[str, Any] = {
    "hybrid_override_pattern": "M*E-M", "n_routed_experts": 4, "moe_intermediate_size": 32, "n_groups": 2,
    "moe_shared_expert_intermediate_size": 32, "mamba_num_heads": 4, "mamba_head_dim": 16, "ssm_state_size": 8,
    "chunk_size": 8,
}  # fmt: skip
GRANITE: dict[str, Any] = {
    **WINDOW, "logits_scaling": 4.0, "embedding_multiplier": 6.0, "residual_multiplier": 0.3,
    "attention_multiplier": 0.1,
}  # fmt: skip
EXPERTS_OF_MIMO: dict[str, Any] = {
    "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "n_group": 1, "topk_group": 1,
}  # fmt: skip

YOUNG_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "afmoe": ("AfmoeConfig", {**ROUTED, **WINDOW, "mup_enabled": True, "global_attn_every_n_layers": 2}),
    "apertus": ("ApertusConfig", {}),
    "arcee": ("ArceeConfig", {}),
    "beam": ("BeamConfig", {**ROUTED, **WINDOW, "n_group": 2, "topk_group": 1, "final_logit_softcapping": 3.0}),
    "cohere2-moe": ("Cohere2MoeConfig", {**ROUTED, **WINDOW, "logit_scale": 0.5, "tie_word_embeddings": True}),
    "cwm": ("CwmConfig", WINDOW),
    "deepseek-v3.2": ("DeepseekV32Config", {**LATENT, **INDEXED, "n_group": 2, "topk_group": 1}),
    "deepseek-v4": (
        "DeepseekV4Config",
        {**INDEXED, **WINDOW, **EXPERTS_OF_MIMO, "num_key_value_heads": 1, "o_lora_rank": 16, "o_groups": 2,
         "hc_mult": 2, "qk_rope_head_dim": 8, "num_hash_layers": 1},
    ),
    "ernie4.5": ("Ernie4_5Config", {}),
    "exaone-moe": ("ExaoneMoeConfig", {**ROUTED, **WINDOW}),
    "flex-olmo": ("FlexOlmoConfig", {"num_experts": 4, "num_experts_per_tok": 2}),
    "gemma4-text": ("Gemma4TextConfig", GEMMA4),
    "glm4-moe-lite": ("Glm4MoeLiteConfig", {**LATENT, "q_lora_rank": 24}),
    "glm-moe-dsa": ("GlmMoeDsaConfig", {**LATENT, **INDEXED}),
    "gpt-bigcode": ("GPTBigCodeConfig", {}),
    "granite-moe-swa": ("GraniteMoeSWAConfig", {**EXPERTS, **GRANITE, "shared_intermediate_size": 32}),
    "granite-moe-shared": (
        "GraniteMoeSharedConfig", {**EXPERTS, "logits_scaling": 3.0, "shared_intermediate_size": 32},
    ),
    "granite-swa": ("GraniteSWAConfig", GRANITE),
    "hunyuan-dense": ("HunYuanDenseV1Config", {}),
    "hunyuan-moe": ("HunYuanMoEV1Config", {"num_experts": 4, "moe_topk": 2}),
    "jais2": ("Jais2Config", {}),
    "kimi-linear": (
        "KimiLinearConfig", {**LATENT, "num_local_experts": 4, "linear_head_dim": 16, "linear_num_heads": 4},
    ),
    "kolibri1": ("Kolibri1Config", {**ROUTED, **WINDOW, **SHARED}),
    "laguna": ("LagunaConfig", {**ROUTED, **WINDOW, **SHARED}),
    "longcat-flash": (
        "LongcatFlashConfig",
        {**LATENT, "num_hidden_layers": 10, "q_lora_rank": 24, "ffn_hidden_size": 96, "expert_ffn_hidden_size": 32,
         "moe_topk": 2, "zero_expert_num": 2},
    ),
    "mellum": ("MellumConfig", {**ROUTED, **WINDOW}),
    "mimo-v2-flash": (
        "MiMoV2FlashConfig", {**WINDOW, **EXPERTS_OF_MIMO, "v_head_dim": 16, "swa_head_dim": 16, "swa_v_head_dim": 16},
    ),
    "minimax-m2": ("MiniMaxM2Config", EXPERTS),
    "ministral3": ("Ministral3Config", {}),
    "nemotron-h": ("NemotronHConfig", MAMBA),
    "olmo": ("OlmoConfig", {}),
    "olmo3": ("Olmo3Config", WINDOW),
    "qwen3.5": ("Qwen3_5TextConfig", LINEAR),
    "qwen3.5-moe": ("Qwen3_5MoeTextConfig", {**ROUTED, **LINEAR, **SHARED}),
    "vaultgemma": (
        "VaultGemmaConfig",
        {**WINDOW, "query_pre_attn_scalar": 16, "final_logit_softcapping": 3.0, "attn_logit_softcapping": 2.0},
    ),
}  # fmt: skip

EYE: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
PLACES: dict[str, Any] = {"image_token_id": 317, "video_token_id": 318, "audio_token_id": 319}
SOUND: dict[str, Any] = {"hidden_size": 8, "num_filters": 2, "depths": [1, 1], "downsampling_ratios": [2]}
ONE_PLACE: dict[str, Any] = {"image_token_id": 317}
KINDS_OF_ROPE: dict[str, Any] = {
    "rope_parameters": {
        kind: {"rope_type": "default", "rope_theta": 10000.0} for kind in ("full_attention", "sliding_attention")
    }
}
YOUNG_WRAPPERS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "cohere-compass": (
        "CohereCompassConfig", "CohereCompassForConditionalGeneration",
        {**WINDOW, **KINDS_OF_ROPE, "tie_word_embeddings": True, "logit_scale": 0.5},
        {"vision_config": {**QWEN_TOWER, "deepstack_visual_indexes": [0]}, **IMAGES, "tie_word_embeddings": True},
    ),
    "emu3": (
        "Emu3Config", "Emu3ForConditionalGeneration", {},
        {"vq_config": {"base_channels": 32, "num_res_blocks": 1, "hidden_size": 32, "codebook_size": 16,
                       "attn_resolutions": []}, "vocabulary_map": {"<image>": 300, "<|extra_0|>": 301}},
    ),
    "exaone4.5": (
        "Exaone4_5_Config", "Exaone4_5_ForConditionalGeneration", {**WINDOW, "model_type": "exaone4"},
        {"vision_config": {**QWEN_TOWER, "num_key_value_heads": 2, "fullatt_block_indexes": [0]}, **PLACES},
    ),
    "gemma4": (
        "Gemma4Config", "Gemma4ForConditionalGeneration", GEMMA4,
        {"vision_config": {**EYE, "num_key_value_heads": 2, "head_dim": 16}, "audio_config": None, **PLACES},
    ),
    "gemma4-unified": (
        "Gemma4UnifiedConfig", "Gemma4UnifiedForConditionalGeneration",
        {**WINDOW, "global_head_dim": 32, "tie_word_embeddings": True, "final_logit_softcapping": 3.0}, PLACES,
    ),
    "glm5-next": (
        "Glm5NextConfig", "Glm5NextForConditionalGeneration",
        {**LATENT, **INDEXED, "qk_rope_head_dim": 0, "linear_head_dim": 16, "linear_num_heads": 4, "hc_mult": 2,
         "index_kpool": 2},
        {"vision_config": {**QWEN_TOWER, "projection_intermediate_size": 32}, **PLACES},
    ),
    "hunyuan-vl": (
        "HunYuanVLConfig", "HunYuanVLForConditionalGeneration",
        {"tie_word_embeddings": True,
         "rope_parameters": {**MROPE, "xdrope_section": [2, 2, 2, 2], "mrope_section": [2, 2, 2, 2]}},
        {"vision_config": {**EYE, "num_key_value_heads": 2, "out_hidden_size": 64, "text_hidden_size": 64},
         **ONE_PLACE},
    ),
    "kimi-k2.5": (
        "Kimi_K25Config", "Kimi_K25ForConditionalGeneration",
        {"model_type": "deepseek_v3", **FAMILIES["deepseek-v3"][1]}, {"vision_config": EYE, **ONE_PLACE},
    ),
    "lighton-ocr": (
        "LightOnOcrConfig", "LightOnOcrForConditionalGeneration", {"model_type": "qwen3"},
        {"vision_config": {"model_type": "pixtral", **TOWER, "head_dim": 16}, **ONE_PLACE},
    ),
    "llava": (
        "LlavaConfig", "LlavaForConditionalGeneration", {"model_type": "llama"},
        {"vision_config": {"model_type": "clip_vision_model", **TOWER}, "image_token_index": 317},
    ),
    "minicpmv4.6": (
        "MiniCPMV4_6Config", "MiniCPMV4_6ForConditionalGeneration", {"model_type": "qwen3_5_text", **LINEAR},
        {"vision_config": {**TOWER, "insert_layer_id": 0}, **ONE_PLACE},
    ),
    "minimax-m3": (
        "MiniMaxM3VLConfig", "MiniMaxM3SparseForConditionalGeneration",
        {**EXPERTS, "dense_intermediate_size": 96, "shared_intermediate_size": 32, "rotary_dim": 8, "index_n_heads": 2,
         "index_head_dim": 16, "index_block_size": 4, "index_topk_blocks": 4,
         "layer_types": ["full_attention", *["minimax_m3_sparse"] * 4]},
        {"vision_config": TOWER, **PLACES},
    ),
    "muse-glimmer": (
        "MuseGlimmerConfig", "MuseGlimmerForConditionalGeneration",
        {**WINDOW, "final_logit_softcapping": 3.0, "output_multiplier": 0.5},
        {"vision_config": EYE, **PLACES, "projector_hidden_size": 32},
    ),
    "muse-spark": (
        "MuseSparkConfig", "MuseSparkForConditionalGeneration",
        {**WINDOW, **EXPERTS, "moe_intermediate_size": 32, "moe_hidden_size": 32, "final_logit_softcapping": 3.0,
         "output_multiplier": 0.5},
        {"vision_config": EYE, **PLACES, "projector_hidden_size": 32,
         "audio_config": {"num_hidden_layers": 1, "out_hidden_size": 64, "patch_sizes": [2], "hidden_sizes": [32],
                          "depths": [1]}},
    ),
    "nemotron-omni": (
        "NemotronH_Omni_Reasoning_V3_Config", "NemotronH_Omni_Reasoning_V3", {"model_type": "nemotron_h", **MAMBA},
        {"vision_config": {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
                           "video_temporal_patch_size": 2}},
    ),
    "qwen3-asr": (
        "Qwen3ASRConfig", "Qwen3ASRForConditionalGeneration", {"model_type": "qwen3", "tie_word_embeddings": True},
        {"audio_config": {"encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 32, "d_model": 32,
                          "output_dim": 64, "downsample_hidden_size": 32}, "audio_token_id": 319},
    ),
    "qwen3-vl-moe": (
        "Qwen3VLMoeConfig", "Qwen3VLMoeForConditionalGeneration", {**ROUTED, "rope_parameters": MROPE},
        {"vision_config": {**QWEN_TOWER, "deepstack_visual_indexes": [0]}, **IMAGES},
    ),
    "qwen4-exp": (
        "Qwen4ExpConfig", "Qwen4ExpForConditionalGeneration",
        {**ROUTED, **LINEAR, **SHARED, "hc_count": 2, "hc_lowrank": 16, "ple_embed_dim": 16,
         "ngram_vocab_size_base": 50, "heads_per_ngram": 2, "split_ngram_parts": 2, "indexer_n_heads": 2,
         "indexer_kv_heads": 1, "indexer_head_dim": 16, "indexer_budget": 8, "indexer_compress_ratio": 2},
        {"vision_config": QWEN_TOWER, **IMAGES},
    ),
    "vibevoice-asr": (
        "VibeVoiceAsrConfig", "VibeVoiceAsrForConditionalGeneration", {"model_type": "qwen2"},
        {"audio_token_id": 319, "acoustic_tokenizer_encoder_config": SOUND, "semantic_tokenizer_encoder_config": SOUND},
    ),
}  # fmt: skip

ALSO_DECODED = (
    *(
        "glm",
        "glm4-moe",
        "gpt-neox",
        "granite-moe",
        "minicpm3",
        "olmo2",
        "phi",
        "qwen2-moe",
        "qwen3-next",
        "seed-oss",
        "smollm3",
    ),
    *("starcoder2", "llama4-vision", "mistral3", "qwen2.5-vl", "qwen3-vl"),
)
"""Families of ``tests/families.py`` that nothing else decodes with a draft."""
NOT_LOADED = frozenset({"qwen4-exp"})
REFUSED = frozenset({
    *("deepseek-v4", "glm5-next", "kimi-linear", "minicpmv4.6", "minimax-m3", "nemotron-h", "nemotron-omni"),
    *("qwen3.5", "qwen3.5-moe", "qwen3-next"),
})  # fmt: skip
"""States of a recurrence, or keys that are compressed: a rejected token cannot be taken back."""
