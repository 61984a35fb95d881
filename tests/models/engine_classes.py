"""The classes that SGLang and vLLM (versions in ``CHECKED``) serve with EAGLE-3 and that no packaged config is for.

With those of the packaged configs they are all that the engines' sources have: ``test_engines.py`` holds the lists
against each other, ``tests/engines/test_classes.py`` against the sources.
"""

from __future__ import annotations

TEXT_OF = {
    "BailingMoEForCausalLM": "BailingMoeForCausalLM",
    "Glm5NextForCausalLM": "Glm5NextForConditionalGeneration",
    "Gemma4ForCausalLM": "Gemma4ForConditionalGeneration",
    "LLaMAForCausalLM": "LlamaForCausalLM",
    "Llama4ForCausalLM": "Llama4ForConditionalGeneration",
    "MiniMaxM3SparseForCausalLM": "MiniMaxM3SparseForConditionalGeneration",
    "Ministral3ForCausalLM": "Mistral3ForConditionalGeneration",
    "MuseGlimmerForCausalLM": "MuseGlimmerForConditionalGeneration",
    "Qwen3_5ForCausalLM": "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForCausalLM": "Qwen3_5MoeForConditionalGeneration",
}
"""The same text model under another name, for which a config is packaged."""
NO_NUMBERS = frozenset(
    {
        *("ExaoneMoEForCausalLM", "ExaoneMoeForCausalLM", "GraniteMoeForCausalLM", "GraniteMoeSWAForCausalLM"),
        *("GraniteMoeSharedForCausalLM", "IQuestCoderForCausalLM", "K2HorizonForCausalLM", "NanbeigeForCausalLM"),
        *("NemotronHPuzzleForCausalLM", "Plamo3ForCausalLM", "Step1ForCausalLM", "TeleFLMForCausalLM"),
        *("VaultGemmaForCausalLM",),
    }
)
"""Language models without a whole copy of their ``config.json``: K-EXAONE's lack the number of layers, VaultGemma's the
context; of the others none was found, or transformers' defaults are another model's."""
MORE_THAN_TEXT = frozenset(
    {
        *("Alpamayo2Super", "CohereCompassForConditionalGeneration", "Cosmos3ForConditionalGeneration"),
        *("DeepseekV41ForCausalLM", "DeepseekV4ForConditionalGeneration", "Exaone4_5_ForConditionalGeneration"),
        *("HunYuanVLForConditionalGeneration", "InternS1ProForConditionalGeneration"),
        *("InternS2MobiusForConditionalGeneration", "InternS2PreviewForConditionalGeneration"),
        *("LlavaForConditionalGeneration", "MiMoV2OmniForCausalLM", "MiniCPMOcrForConditionalGeneration"),
        *(
            "MiniCPMV4_6ForConditionalGeneration",
            "MiniCPMV4_7ForConditionalGeneration",
            "NemotronH_Nano_Omni_Reasoning_V3",
        ),
        *("NemotronH_Nano_VL_V2", "NemotronH_Omni_Reasoning_V3", "NemotronH_Super_Omni_Reasoning_V3"),
        *("OpenCUAForConditionalGeneration", "PixtralForConditionalGeneration", "Qwen3ASRForConditionalGeneration"),
        *("Qwen3ASRRealtimeGeneration", "Qwen3OmniMoeForConditionalGeneration", "Qwen4ExpForConditionalGeneration"),
        *("RadioMBartPrefixForCausalLM", "VibeVoiceAsrForConditionalGeneration"),
    }
)
"""Models of pictures, sound or video whose text models differ by the checkpoint, or of which no copy was found."""
