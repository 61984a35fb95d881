"""What servers hand a draft, by the class of its target: who serves it, how layers are counted, since when.

Read from the sources of the versions in CHECKED; the engine tests hold the sets against the engines' own classes, and
run a draft on every class in RUN. Nothing else in the package knows what an engine can do.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from eagle3cli.models.aux_layers import text_part
from eagle3cli.models.config import AUX_LAYERS, DraftConfig
from eagle3cli.models.layers.sizes import is_latent
from eagle3cli.models.packaged import packaged_configs, packaged_target_class, read_config_file

Engine = Literal["sglang", "vllm", "llama.cpp"]
ENGINES: dict[Engine, str] = {"sglang": "SGLang", "vllm": "vLLM", "llama.cpp": "llama.cpp"}
"""Their names, as people write them."""
CHECKED: dict[Engine, str] = {"sglang": "0.5.23", "vllm": "0.32.0", "llama.cpp": "0.5.0-dev"}
"""The versions whose sources were read and that the engine tests run."""
OLDEST: dict[Engine, str] = {"sglang": "0.5.11", "vllm": "0.21.0", "llama.cpp": "0.5.0-dev"}
"""The oldest versions whose loaders were read; they run a plain draft: one layer, three auxiliary ones, no options."""
NEWER: dict[Engine, dict[str, str]] = {
    "sglang": {
        **dict.fromkeys(("fc_norm", "norm_output", "aux_layers", "num_hidden_layers", "window"), "0.5.12"),
        "shifted": "0.5.13",
        "latent": "0.5.13",  # 0.5.12 has it without fc_norm and norm_output
        "norm_before_fc": "0.5.17",
    },
    "vllm": {
        **dict.fromkeys(("fc_norm", "norm_output", "aux_layers"), "0.22.0"),
        "latent": "0.32.0",  # the oldest that was read whose RoPE is the draft's: 0.22's loses its base
    },
    "llama.cpp": {},
}
"""The version that first reads what a plain draft has not; older ones pass over options without a word."""

SGLANG = frozenset(
    {
        *("ApertusForCausalLM", "BailingMoEForCausalLM", "BailingMoeForCausalLM", "BailingMoeV2ForCausalLM"),
        *("Cosmos3ForConditionalGeneration", "ExaoneMoEForCausalLM", "ExaoneMoeForCausalLM", "Gemma3ForCausalLM"),
        *("Gemma3ForConditionalGeneration", "Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"),
        *("Gemma4UnifiedForConditionalGeneration", "Glm4MoeForCausalLM", "Glm5NextForConditionalGeneration"),
        *("GptOssForCausalLM", "IQuestCoderForCausalLM", "InternLM3ForCausalLM"),
        *("InternS1ProForConditionalGeneration", "InternS2MobiusForConditionalGeneration"),
        *("InternS2PreviewForConditionalGeneration", "Llama4ForCausalLM", "Llama4ForConditionalGeneration"),
        *("LlamaForCausalLM", "LongcatFlashForCausalLM", "MellumForCausalLM", "MiniMaxM2ForCausalLM"),
        *("MiniMaxM3SparseForCausalLM", "MiniMaxM3SparseForConditionalGeneration", "Ministral3ForCausalLM"),
        *("MistralForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM", "Qwen2MoeForCausalLM"),
        *("Qwen2_5_VLForConditionalGeneration", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "Qwen3NextForCausalLM"),
        *("Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration", "Qwen3_5ForCausalLM"),
        *("Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"),
        *("Qwen4ExpForConditionalGeneration", "SarvamMoEForCausalLM", "TeleFLMForCausalLM"),
    }
)
"""Classes that SGLang takes auxiliary states of; the number of a layer is that of the one whose output is read."""
SGLANG_FIRST_IS_1 = frozenset(
    {
        *("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM", "Glm4MoeLiteForCausalLM"),
        *("GlmMoeDsaForCausalLM", "MistralLarge3ForCausalLM", "KimiK25ForConditionalGeneration"),
    }
)
"""Those whose numbers mean that only where the first of them is 1; else they are the layers whose inputs are read."""
SGLANG_LAST = frozenset({"GptOssForCausalLM", "Gemma4ForCausalLM"})
"""Those that deliver the output of the last layer as well; the others have no layer behind it to read it at."""
SGLANG_NO_RESIDUAL = frozenset({"Gemma3ForCausalLM", "Gemma3ForConditionalGeneration"})
"""Those of which it hands on a layer's last sum alone, without the residual stream that transformers has in it."""
SGLANG_STREAMS = frozenset({"Glm5NextForConditionalGeneration", "Qwen4ExpForConditionalGeneration"})
"""Those of which it keeps all streams side by side (hyper-connections), several times as wide as a draft reads."""
VLLM_SINCE: dict[str, str] = dict.fromkeys(
    (
        *("Alpamayo2Super", "BeamForCausalLM", "GraniteMoeForCausalLM", "GraniteMoeSWAForCausalLM"),
        *("GraniteMoeSharedForCausalLM", "Kolibri1ForCausalLM", "MiniCPMOcrForConditionalGeneration"),
        *("MuseSparkForConditionalGeneration", "RadioMBartPrefixForCausalLM"),
    ),
    "0.33.0",
)
"""Those of a newer version than the one in CHECKED: its sources were read, and it has no build for a CPU."""
VLLM = frozenset(
    {
        *("AfmoeForCausalLM", "ApertusForCausalLM", "ArceeForCausalLM", "Cohere2MoeForCausalLM"),
        *("CohereCompassForConditionalGeneration", "Cosmos3ForConditionalGeneration", "CwmForCausalLM"),
        *("DeepseekForCausalLM", "DeepseekV2ForCausalLM", "DeepseekV32ForCausalLM", "DeepseekV3ForCausalLM"),
        *("DeepseekV41ForCausalLM", "DeepseekV4ForCausalLM", "DeepseekV4ForConditionalGeneration"),
        *("Emu3ForConditionalGeneration", "Ernie4_5ForCausalLM", "Exaone4_5_ForConditionalGeneration"),
        *("GPTBigCodeForCausalLM", "Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"),
        *("Gemma4UnifiedForConditionalGeneration", "Glm5NextForCausalLM", "Glm5NextForConditionalGeneration"),
        *("GlmMoeDsaForCausalLM", "GptOssForCausalLM", "GraniteForCausalLM", "GraniteSWAForCausalLM"),
        *("HunYuanDenseV1ForCausalLM", "HunYuanMoEV1ForCausalLM", "HunYuanVLForConditionalGeneration"),
        *("IQuestCoderForCausalLM", "InternLM3ForCausalLM", "InternS1ProForConditionalGeneration"),
        *("InternS2MobiusForConditionalGeneration", "InternS2PreviewForConditionalGeneration", "K2HorizonForCausalLM"),
        *("KimiK25ForConditionalGeneration", "KimiK3ForConditionalGeneration", "KimiLinearForCausalLM"),
        *("LLaMAForCausalLM", "LagunaForCausalLM", "LightOnOCRForConditionalGeneration", "Llama4ForCausalLM"),
        *("Llama4ForConditionalGeneration", "LlamaForCausalLM", "LlavaForConditionalGeneration", "MellumForCausalLM"),
        *("MiMoForCausalLM", "MiMoV2FlashForCausalLM", "MiMoV2ForCausalLM", "MiMoV2OmniForCausalLM"),
        *("MiniCPM3ForCausalLM", "MiniCPMForCausalLM", "MiniCPMV4_6ForConditionalGeneration"),
        *("MiniCPMV4_7ForConditionalGeneration", "MiniMaxM2ForCausalLM", "MiniMaxM3SparseForCausalLM"),
        *("MiniMaxM3SparseForConditionalGeneration", "Ministral3ForCausalLM", "Mistral3ForConditionalGeneration"),
        *("MistralForCausalLM", "MistralLarge3ForCausalLM", "MuseGlimmerForCausalLM"),
        *("MuseGlimmerForConditionalGeneration", "NemotronHForCausalLM", "NemotronHPuzzleForCausalLM"),
        *("NemotronH_Nano_Omni_Reasoning_V3", "NemotronH_Nano_VL_V2", "NemotronH_Omni_Reasoning_V3"),
        *("NemotronH_Super_Omni_Reasoning_V3", "OpenCUAForConditionalGeneration", "Phi3ForCausalLM"),
        *("PixtralForConditionalGeneration", "Plamo3ForCausalLM", "Qwen2ForCausalLM"),
        *("Qwen2_5_VLForConditionalGeneration", "Qwen3ASRForConditionalGeneration", "Qwen3ASRRealtimeGeneration"),
        *("Qwen3ForCausalLM", "Qwen3MoeForCausalLM", "Qwen3NextForCausalLM", "Qwen3OmniMoeForConditionalGeneration"),
        *("Qwen3VLForConditionalGeneration", "Qwen3VLMoeForConditionalGeneration", "Qwen3_5ForCausalLM"),
        *("Qwen3_5ForConditionalGeneration", "Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"),
        *("SarvamMLAForCausalLM", "Step1ForCausalLM", "TeleChat2ForCausalLM", "TeleChat3ForCausalLM"),
        *("TeleFLMForCausalLM",),
        # Classes that it runs by transformers of itself.
        *("FlexOlmoForCausalLM", "GPTNeoXForCausalLM", "GlmForCausalLM", "Jais2ForCausalLM", "NanbeigeForCausalLM"),
        *("Olmo2ForCausalLM", "Olmo3ForCausalLM", "OlmoForCausalLM", "PhiForCausalLM", "SeedOssForCausalLM"),
        *("SmolLM3ForCausalLM", "Starcoder2ForCausalLM", "VaultGemmaForCausalLM"),
        *("VibeVoiceAsrForConditionalGeneration",),
        *VLLM_SINCE,
    }
)
"""Classes that vLLM takes auxiliary states of; it counts the layer whose input is read, the one behind the last too."""
VLLM_BY_TRANSFORMERS = frozenset({"Gemma3ForCausalLM", "Glm4ForCausalLM", "Glm4MoeForCausalLM", "MixtralForCausalLM"})
"""Classes of which vLLM's own have none, and transformers' have inside vLLM: ``--model-impl transformers``."""
LLAMACPP_LAST = frozenset({"GptOssForCausalLM", "Gemma4ForCausalLM", "Gemma4ForConditionalGeneration"})
"""Those of which llama.cpp delivers the output of the last layer as well."""
LLAMACPP = LLAMACPP_LAST | frozenset(
    {
        *("BailingMoeV3ForCausalLM", "Gemma4UnifiedForConditionalGeneration", "HunYuanVLForConditionalGeneration"),
        *("IQuestCoderForCausalLM", "InternLM3ForCausalLM", "Lfm2ForCausalLM", "LlamaForCausalLM"),
        *("MiMoV2FlashForCausalLM", "MiniMaxM2ForCausalLM", "MistralForCausalLM", "MixtralForCausalLM"),
        *("NanbeigeForCausalLM", "NemotronHForCausalLM", "Qwen3ForCausalLM", "Qwen3MoeForCausalLM"),
        *("Qwen3NextForCausalLM", "Qwen3_5ForCausalLM", "Qwen3_5ForConditionalGeneration"),
        *("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration"),
    }
)
"""Classes of whose architectures llama.cpp keeps what a layer reads (``t_layer_inp``); with others it aborts."""
RUN_BY_BOTH = frozenset(
    {
        *("DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM", "GptOssForCausalLM", "Glm4MoeForCausalLM"),
        *(
            "LlamaForCausalLM",
            "MistralForCausalLM",
            "Phi3ForCausalLM",
            "Qwen2ForCausalLM",
            "Qwen3ForCausalLM",
            "Qwen3MoeForCausalLM",
        ),
    }
)
RUN: dict[Engine, frozenset[str]] = {
    "sglang": RUN_BY_BOTH,
    "vllm": RUN_BY_BOTH | VLLM_BY_TRANSFORMERS,
    "llama.cpp": frozenset({"LlamaForCausalLM", "Qwen3ForCausalLM"}),
}
"""Classes on which a draft was accepted by the engine as often as by our own decoder; ``make test-engine-families`` and
``test-llamacpp``."""


LATENT_CLASSES = frozenset({"DeepseekV2ForCausalLM", "DeepseekV3ForCausalLM"})
RUN_LATENT: dict[Engine, frozenset[str]] = {
    "sglang": LATENT_CLASSES,
    "vllm": LATENT_CLASSES,
    "llama.cpp": frozenset(),
}
"""The same of a draft of latent attention (MLA)."""
LATENT_WITH: dict[Engine, str] = {"sglang": "on a CPU with torch.cuda.synchronize put out of the way"}
"""What such a draft needs besides the line that ``export`` prints."""

KNOWN: dict[Engine, frozenset[str]] = {
    "sglang": SGLANG | SGLANG_FIRST_IS_1,
    "vllm": VLLM | VLLM_BY_TRANSFORMERS,
    "llama.cpp": LLAMACPP,
}
"""Classes that each engine has auxiliary states of."""
QUANTISED_IN_FLOAT32: frozenset[tuple[Engine, str]] = frozenset(
    {("vllm", "compressed-tensors"), ("vllm", "torchao"), ("sglang", "bitsandbytes")}
)
"""Ways of quantised weights (``quant_method``) beside which an engine runs the rest of a target in float32."""


def target_class(target: Mapping[str, Any] | None) -> str | None:
    """The class that an engine loads a target's config with; None where it names none."""
    names = (target or {}).get("architectures")
    return str(names[0]) if isinstance(names, list) and names else None


def sglang_layers(layers: Sequence[int], name: str | None) -> list[int]:
    """The auxiliary layers (those whose outputs are read) in the numbers that SGLang's class ``name`` takes.

    A class that adds one only where the first is 1 gets 1 first where it is among them (the order means nothing), else
    the next layer's numbers, with none of them 1 at the first place.
    """
    if name not in SGLANG_FIRST_IS_1 or layers[0] == 1:
        return list(layers)
    if 1 in layers:
        return [1, *(layer for layer in layers if layer != 1)]
    behind = [layer + 1 for layer in layers]
    return behind if behind[0] != 1 else [*behind[1:2], 1, *behind[2:]]


def layers_as_sglang_reads(raw: Mapping[str, Any], target: Mapping[str, Any] | None) -> tuple[int, ...] | None:
    """The layers whose outputs another program's draft reads, where SGLang alone is told them and counts them its way.

    ``raw`` is the draft's config. None where its numbers mean the outputs: by far the most drafts.
    """
    numbers = (raw.get("eagle_config") or {}).get(AUX_LAYERS)
    if not numbers or raw.get(AUX_LAYERS) or target_class(target) not in SGLANG_FIRST_IS_1 or numbers[0] == 1:
        return None
    return tuple(sorted(number - 1 for number in numbers))


def has_shifted_layers(layers: Sequence[int], name: str | None) -> bool:
    """Whether SGLang's numbers of these layers are not those of the outputs: read so since 0.5.13 alone."""
    return sorted(sglang_layers(layers, name)) != list(layers)


def unsupported(engine: Engine, name: str | None, *, backend: str | None = None) -> str | None:
    """Why an engine hands no draft what it was trained on by a target of this class; None where it does.

    ``backend`` is what captured the states that the draft was trained on. A class that is not known (None) is taken
    for one that is served.
    """
    if name is None:
        return None
    if name not in KNOWN[engine]:
        return f"{ENGINES[engine]} {CHECKED[engine]} has no auxiliary states of {name}"
    if engine == "sglang" and name in SGLANG_STREAMS:
        return f"SGLang {CHECKED['sglang']} hands on all streams of {name} side by side, and a draft reads their mean"
    if engine == "sglang" and name in SGLANG_NO_RESIDUAL and backend != "sglang":
        return (
            f"SGLang {CHECKED['sglang']} hands on a layer's last sum of {name} without the residual stream; a draft "
            "trained on these states (--target-model-backend sglang) is served"
        )
    return None


def unread_layers(config: DraftConfig, target: Mapping[str, Any] | None) -> list[str]:
    """Auxiliary layers that SGLang does not deliver as the draft reads them; empty where it does."""
    reasons = []
    if is_taken_for_projected(config):
        reasons.append("its one auxiliary state is as wide as its own, and SGLang skips fc where the widths are equal")
    return reasons + unread_last_layer("sglang", config, target)


def unread_last_layer(engine: Engine, config: DraftConfig, target: Mapping[str, Any] | None) -> list[str]:
    """Why an engine does not deliver the target's last layer to a draft that reads it; empty where it does."""
    last = config.aux_layers[-1]
    depth = text_part(target or {}).get("num_hidden_layers")
    name = target_class(target)
    delivered = SGLANG_LAST if engine == "sglang" else LLAMACPP_LAST
    if not isinstance(depth, int) or last != depth - 1 or name in delivered:
        return []
    return [
        f"it reads layer {last}, the target's last, which {ENGINES[engine]}'s {name or 'classes'} never "
        f"{'deliver' if name is None else 'delivers'} (train with --aux-layers below {depth - 1})"
    ]


def unread_weights(engine: Engine, target: Mapping[str, Any] | None, dtype: str | None = None) -> list[str]:
    """Why an engine does not load a target's quantised weights, or not in ``dtype``; empty where it does.

    llama.cpp is given a file of its own, whose weights it knows.
    """
    stored = text_part(target or {}).get("quantization_config")
    if engine == "llama.cpp" or not isinstance(stored, Mapping) or not stored:
        return []
    name = f"{ENGINES[engine]} {CHECKED[engine]}"
    method = str(stored.get("quant_method") or "compressed-tensors")
    reasons = []
    if method == "gptq":
        if stored.get("sym") is False or stored.get("bits") not in (None, 4, 8):
            reasons.append(f"{name} loads GPTQ weights only where they are symmetric (sym) and of 4 or 8 bits")
        if engine == "vllm" and stored.get("desc_act") and stored.get("group_size") != -1:
            reasons.append(f"{name} no longer loads GPTQ weights in the order of activations (desc_act)")
    if dtype == "float32" and (engine, method) not in QUANTISED_IN_FLOAT32:
        reasons.append(f"{name} runs a target of {method} weights in 16 bits alone (--export-dtype bfloat16)")
    return reasons


def unread_window(engine: Engine, config: DraftConfig) -> list[str]:
    """Why an engine would let a draft attend to other tokens than its window and its sinks; empty where it does not."""
    if config.window is None:
        return []
    if engine == "llama.cpp":
        return [f"its window of {config.window} tokens: llama.cpp's drafts attend to all of a text"]
    reasons = []
    if config.sinks:
        reasons.append(
            f"its {config.sinks} sink tokens, which {ENGINES[engine]} does not show to an EAGLE-3 draft (train without "
            "--draft-sinks)"
        )
    if engine == "sglang" and config.window == 1:
        reasons.append("its window of one token; SGLang's smallest is two")
    return reasons


def unread_latent(engine: Engine, config: DraftConfig, target: Mapping[str, Any] | None) -> list[str]:
    """Why an engine does not run a draft's latent attention (MLA) as it was trained; empty where it does."""
    latent = config.latent
    if latent is None:
        return []
    if engine == "llama.cpp":
        return ["its latent attention (MLA), which llama.cpp's EAGLE-3 drafts do not have"]
    reasons = []
    if target is not None and not text_part(target).get("kv_lora_rank"):
        reasons.append("its latent attention (MLA), beside a target with the usual one, which was not tried")
    if config.norm_before_fc:
        reasons.append(f"norm_before_fc, which {ENGINES[engine]} does not read of a draft of latent attention")
    if config.window is not None:
        reasons.append(f"its window of {config.window} tokens; {ENGINES[engine]}'s latent attention has none")
    if engine == "sglang" and config.num_hidden_layers > 1:
        reasons.append(f"{config.num_hidden_layers} layers of latent attention, of which SGLang reads one")
    if engine == "sglang" and latent.q_lora_rank is None:
        reasons.append("q_lora_rank is null, and SGLang's drafts of latent attention have one")
    return reasons


def is_taken_for_projected(config: DraftConfig) -> bool:
    """Whether SGLang takes the auxiliary states for a state of the draft, and leaves fc out."""
    return config.aux_width == config.hidden_size


def enough_layers(config: DraftConfig, least: int, depth: int | None) -> tuple[int, ...]:
    """The draft's auxiliary layers, with others beside them where SGLang needs more.

    It needs ``least`` of them, and states that are together wider than the draft, or ``fc`` is left out. Those that are
    added are near the draft's own and never the last of ``depth``. A norm over all states together would change with
    them, so that such a draft keeps its own alone.
    """
    layers = config.aux_layers
    layer_count = max(least, len(layers) + is_taken_for_projected(config))
    if config.norm_before_fc:
        return layers
    highest = layers[-1] + layer_count if depth is None else depth - 2
    free = [layer for layer in range(highest + 1) if layer not in layers]
    near = sorted(free, key=lambda layer: (abs(layer - layers[0]), layer))
    return tuple(sorted((*layers, *near[: layer_count - len(layers)])))


def minimum_versions(config: DraftConfig, name: str | None = None) -> dict[Engine, str]:
    """The oldest version of each engine that reads all of this draft; older ones misread it, mostly in silence."""
    has = {
        **{flag: getattr(config, flag) for flag in ("fc_norm", "norm_output", "norm_before_fc")},
        "aux_layers": len(config.aux_layers) != 3,
        "num_hidden_layers": config.num_hidden_layers > 1,
        "window": config.window is not None,
        "latent": config.latent is not None,
        "shifted": has_shifted_layers(config.aux_layers, name),
    }
    least: dict[Engine, str] = {}
    for engine, versions in NEWER.items():
        needed = [OLDEST[engine], *(version for key, version in versions.items() if has[key])]
        needed += [VLLM_SINCE[name]] if engine == "vllm" and name in VLLM_SINCE else []
        least[engine] = max(needed, key=lambda version: [int(part) for part in re.findall(r"\d+", version)])
    return least


def support(engine: Engine, name: str, *, latent: bool = False) -> tuple[str, str]:
    """``served``, ``refused`` or ``not tried`` for a draft of ``auto`` (or of latent attention) on a target of this
    class, and why."""
    reason = unsupported(engine, name)
    if reason:
        return "refused", reason
    if latent:
        return (
            ("served", LATENT_WITH.get(engine, ""))
            if name in RUN_LATENT[engine]
            else ("not tried", "no tiny target was run")
        )
    how = "`--model-impl transformers`" if engine == "vllm" and name in VLLM_BY_TRANSFORMERS else ""
    if engine == "llama.cpp":
        how = "trained with `--serve-with llama.cpp`"
    if name in RUN[engine]:
        return "served", "; ".join(filter(None, (how, SERVED_WITH.get((engine, name)))))
    if engine == "vllm" and name in VLLM_SINCE:
        return "not tried", f"from vLLM {VLLM_SINCE[name]} on, which has no build for a CPU"
    return "not tried", NOT_RUN.get((engine, name), "no tiny target of it was run")


SERVED_WITH: dict[tuple[Engine, str], str] = {
    ("vllm", f"DeepseekV{n}ForCausalLM"): "on a CPU with VLLM_MLA_DISABLE=1" for n in (2, 3)
}
"""What a class needs besides the line that ``export`` prints."""
NOT_RUN: dict[tuple[Engine, str], str] = {
    ("sglang", "Llama4ForConditionalGeneration"): "its experts are not for a CPU",
    ("vllm", "Llama4ForConditionalGeneration"): "on a CPU a tiny target writes another text than in transformers",
}
"""Why the engine tests run no draft on a class that an engine has auxiliary states of."""


def support_table() -> list[tuple[str, str, dict[Engine, tuple[str, str]]]]:
    """Every packaged draft config for a class of targets, and what each engine makes of it and why."""
    rows = []
    for name in packaged_configs():
        kind = packaged_target_class(name)
        if kind is not None:
            latent = is_latent(read_config_file(name))
            rows.append((name, kind, {engine: support(engine, kind, latent=latent) for engine in ENGINES}))
    return rows
