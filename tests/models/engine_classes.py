"""The classes that SGLang and vLLM (versions in ``CHECKED``) serve with EAGLE-3 and that no packaged config is for.

With those of the packaged configs they are all that the engines' sources have: ``test_engines.py`` holds the lists
against each other, ``tests/engines/test_classes.py`` against the sources.
"""

from __future__ import annotations

TEXT_OF = {
    "BailingMoEForCausalLM": "BailingMoeForCausalLM",
    "Gemma4ForCausalLM": "Gemma4ForConditionalGeneration",
    "LLaMAForCausalLM": "LlamaForCausalLM",
    "Llama4ForCausalLM": "Llama4ForConditionalGeneration",
    "MiniMaxM3SparseForCausalLM": "MiniMaxM3SparseForConditionalGeneration",
    "Ministral3ForCausalLM": "Mistral3ForConditionalGeneration",
    "Qwen3_5ForCausalLM": "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForCausalLM": "Qwen3_5MoeForConditionalGeneration",
}
"""The same text model under another name, for which a config is packaged."""
NO_NUMBERS = frozenset(
    [
        "AfmoeForCausalLM",
        "ArceeForCausalLM",
        "BailingMoeV2ForCausalLM",
        "Cohere2MoeForCausalLM",
        "CohereCompassForConditionalGeneration",
        "DeepseekForCausalLM",
        "ExaoneMoEForCausalLM",
        "ExaoneMoeForCausalLM",
        "GPTBigCodeForCausalLM",
        "GraniteForCausalLM",
        "GraniteSWAForCausalLM",
        "HunYuanDenseV1ForCausalLM",
        "HunYuanMoEV1ForCausalLM",
        "IQuestCoderForCausalLM",
        "InternLM3ForCausalLM",
        "K2HorizonForCausalLM",
        "LagunaForCausalLM",
        "LongcatFlashForCausalLM",
        "MellumForCausalLM",
        "MiMoV2ForCausalLM",
        "MiniCPMForCausalLM",
        "MistralLarge3ForCausalLM",
        "MuseGlimmerForCausalLM",
        "NemotronHPuzzleForCausalLM",
        "Plamo3ForCausalLM",
        "SarvamMLAForCausalLM",
        "SarvamMoEForCausalLM",
        "Step1ForCausalLM",
        "TeleChat2ForCausalLM",
        "TeleChat3ForCausalLM",
        "TeleFLMForCausalLM",
    ]
)
"""Language models without a copy of their ``config.json`` that could be compared."""
MORE_THAN_TEXT = frozenset(
    [
        "Cosmos3ForConditionalGeneration",
        "Emu3ForConditionalGeneration",
        "Exaone4_5_ForConditionalGeneration",
        "Gemma4UnifiedForConditionalGeneration",
        "Glm5NextForConditionalGeneration",
        "HunYuanVLForConditionalGeneration",
        "InternS1ProForConditionalGeneration",
        "InternS2MobiusForConditionalGeneration",
        "InternS2PreviewForConditionalGeneration",
        "LightOnOCRForConditionalGeneration",
        "LlavaForConditionalGeneration",
        "MiMoV2OmniForCausalLM",
        "MiniCPMV4_6ForConditionalGeneration",
        "MuseGlimmerForConditionalGeneration",
        "NemotronH_Nano_VL_V2",
        "OpenCUAForConditionalGeneration",
        "PixtralForConditionalGeneration",
        "Qwen2_5_VLForConditionalGeneration",
        "Qwen3ASRForConditionalGeneration",
        "Qwen3OmniMoeForConditionalGeneration",
        "Qwen4ExpForConditionalGeneration",
    ]
)
"""Models of pictures, sound or video, whose text models differ by the checkpoint."""
