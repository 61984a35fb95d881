"""What engines make of a draft by its target's class: numbers of layers, versions, and the table that people read."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from eagle3cli.models.aux_layers import default_aux_layers
from eagle3cli.models.config import DraftConfig, named_aux_layers
from eagle3cli.models.contract import refusals
from eagle3cli.models.engines import (
    CHECKED,
    ENGINES,
    KNOWN,
    RUN,
    SGLANG,
    SGLANG_FIRST_IS_1,
    Engine,
    enough_layers,
    minimum_versions,
    sglang_layers,
    support_table,
    unread_layers,
)
from eagle3cli.models.packaged import packaged_configs, packaged_target_class
from eagle3cli.models.serve import check_served, serve, unserved
from tests.conftest import ROOT
from tests.failing import fails
from tests.models.engine_classes import MORE_THAN_TEXT, NO_NUMBERS, TEXT_OF
from tests.models.engine_table import BEGIN, END, markdown
from tests.models.targets import ANY_LATENT, LATENT, TARGETS
from tests.serving.test_engine_drafts import CASES, REFUSED, VLLM_ALONE

LLAMA: dict[str, Any] = {
    **{"architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 8},
    **{"vocab_size": 320, "intermediate_size": 96, "max_position_embeddings": 512},
}
DEEPSEEK = {**LLAMA, "architectures": ["DeepseekV3ForCausalLM"]}


def inputs_read(numbers: list[int], name: str) -> set[int]:
    """Layers whose inputs SGLang 0.5.23 reads for these numbers: its ``set_eagle3_layers_to_capture``, once more."""
    shifted = name not in SGLANG_FIRST_IS_1 or numbers[0] == 1
    return {number + 1 for number in numbers} if shifted else set(numbers)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "DeepseekV2ForCausalLM", "KimiK25ForConditionalGeneration"])
def test_sglang_reads_the_layers_that_were_meant(name: str) -> None:
    for size in range(2, 6):
        for layers in itertools.combinations(range(8), size):
            numbers = sglang_layers(layers, name)
            assert inputs_read(numbers, name) == {layer + 1 for layer in layers}, (layers, numbers)
            if name == "LlamaForCausalLM" or 1 in layers:  # every version of SGLang reads these alike
                assert sorted(numbers) == list(layers)


@pytest.mark.parametrize("depth", range(3, 100))
def test_auto_never_reads_the_last_layer(depth: int) -> None:
    layers = default_aux_layers(depth)
    assert list(layers) == sorted(set(layers))
    assert len(layers) == (2 if depth == 3 else 3)
    assert 0 <= layers[0] < layers[-1] < depth - 1
    config = DraftConfig.from_target({**LLAMA, "num_hidden_layers": depth})
    assert unread_layers(config, {**LLAMA, "num_hidden_layers": depth}) == []


def test_layers_that_sglang_does_not_deliver() -> None:
    config = DraftConfig.from_target(LLAMA)
    last = replace(config, aux_layers=(1, 4, 7))
    assert "it reads layer 7, the target's last" in refusals(last, "sglang", LLAMA)[0]
    assert refusals(last, "vllm", LLAMA) == []
    assert refusals(last, "sglang", {**LLAMA, "architectures": ["GptOssForCausalLM"]}) == []
    assert refusals(last, "sglang") == []  # how deep the target is nobody knows
    one = replace(config, aux_layers=(3,))
    assert "SGLang skips fc" in refusals(one, "sglang", LLAMA)[0]
    assert refusals(one, "vllm", LLAMA) == []


def test_layers_that_are_added() -> None:
    config = DraftConfig.from_target(LLAMA)
    assert enough_layers(config, 3, 8) == config.aux_layers
    assert enough_layers(replace(config, aux_layers=(3,)), 1, 8) == (2, 3)
    assert enough_layers(replace(config, aux_layers=(0,)), 3, 8) == (0, 1, 2)
    assert enough_layers(replace(config, aux_layers=(7,)), 1, 8) == (6, 7)
    assert enough_layers(replace(config, aux_layers=(3,)), 3, None) == (2, 3, 4)
    assert enough_layers(replace(config, aux_layers=(3,), norm_before_fc=True), 1, 8) == (3,)
    half = replace(config, target_hidden_size=32, aux_layers=(1, 4))  # two states as wide as the draft
    assert enough_layers(half, 1, 8) == (0, 1, 4)


def test_the_oldest_versions() -> None:
    plain = replace(DraftConfig.from_target(LLAMA), norm_output=False)
    own = {"llama.cpp": "0.5.0-dev"}
    assert minimum_versions(plain, "LlamaForCausalLM") == {"sglang": "0.5.11", "vllm": "0.21.0", **own}
    assert minimum_versions(replace(plain, norm_output=True)) == {"sglang": "0.5.12", "vllm": "0.22.0", **own}
    assert minimum_versions(replace(plain, norm_before_fc=True))["sglang"] == "0.5.17"
    assert minimum_versions(replace(plain, aux_layers=(2, 4, 5)), "DeepseekV3ForCausalLM")["sglang"] == "0.5.13"
    assert minimum_versions(plain, "DeepseekV3ForCausalLM")["sglang"] == "0.5.11"  # (1, 3, 4): read alike by all


def test_who_will_not_serve_what_is_to_be_trained() -> None:
    auto = DraftConfig.from_target(LLAMA)
    assert list(unserved(auto, LLAMA)) == ["llama.cpp"]  # its norm_output
    config = replace(auto, norm_output=False)
    assert unserved(config, LLAMA) == {}
    assert unserved(replace(config, aux_layers=(3,)), LLAMA) == {}  # export adds a layer
    assert list(unserved(replace(config, aux_layers=(3,), norm_before_fc=True), LLAMA)) == ["sglang", "llama.cpp"]
    assert list(unserved(replace(config, own_embedding=True), LLAMA)) == ["sglang"]
    assert list(unserved(config, {**LLAMA, "architectures": ["MambaForCausalLM"]})) == ["sglang", "vllm", "llama.cpp"]
    gemma = {**LLAMA, "architectures": ["Gemma3ForCausalLM"]}
    assert list(unserved(config, gemma)) == ["sglang", "llama.cpp"]
    assert list(unserved(config, gemma, backend="sglang")) == ["llama.cpp"]


def test_who_will_not_serve_a_window() -> None:
    plain = replace(DraftConfig.from_target(LLAMA), norm_output=False)
    assert list(unserved(replace(plain, window=512), LLAMA)) == ["llama.cpp"]
    assert list(unserved(replace(plain, window=1), LLAMA)) == ["sglang", "llama.cpp"]
    assert list(unserved(replace(plain, window=512, sinks=4), LLAMA)) == ["sglang", "vllm", "llama.cpp"]
    assert minimum_versions(replace(plain, window=512))["sglang"] == "0.5.12"


@pytest.mark.parametrize(
    ("quantization", "refused"),
    [
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": False}, {}),
        ({"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": True, "desc_act": True}, {"vllm": "desc_act"}),
        ({"quant_method": "gptq", "bits": 8, "group_size": -1, "sym": True, "desc_act": True}, {}),
        (
            {"quant_method": "gptq", "bits": 4, "group_size": 128, "sym": False, "desc_act": False},
            {"sglang": "symmetric", "vllm": "symmetric"},
        ),
        (
            {"quant_method": "gptq", "bits": 3, "group_size": 128, "sym": True, "desc_act": False},
            {"sglang": "4 or 8 bits", "vllm": "4 or 8 bits"},
        ),
        ({"quant_method": "awq", "bits": 4}, {}),
        (None, {}),
    ],
)
def test_weights_that_an_engine_does_not_load(quantization: dict[str, Any] | None, refused: dict[str, str]) -> None:
    config = replace(DraftConfig.from_target(LLAMA), dtype="bfloat16", norm_output=False)
    target = {**LLAMA, "quantization_config": quantization}
    served = serve("t", "d", config, steps=3, layout="sglang", target_config=target)
    assert served.refused.keys() == refused.keys() == {"sglang", "vllm"} - served.lines.keys()
    assert all(word in served.refused[engine] for engine, word in refused.items())  # type: ignore[index]
    assert unserved(config, target).keys() == refused.keys()
    for engine, word in refused.items():
        with fails("unservable-draft", word):
            check_served(config, target, engine)


def test_quantised_weights_run_in_16_bits() -> None:
    config = replace(DraftConfig.from_target(LLAMA), dtype="float32")
    for method, served in (("awq", []), ("fp8", []), ("compressed-tensors", ["vllm"]), ("bitsandbytes", ["sglang"])):
        target = {**LLAMA, "quantization_config": {"quant_method": method}}
        found = serve("t", "d", config, steps=3, layout="sglang", target_config=target)
        assert list(found.lines) == served
        assert {*found.refused} == {"sglang", "vllm"} - {*served}
        assert all("--export-dtype bfloat16" in reason for reason in found.refused.values())


def test_lines_hold_what_the_target_needs() -> None:
    config = replace(DraftConfig.from_target(LLAMA), dtype="bfloat16")
    served = serve("my target", "d", config, steps=3, layout="sglang", target_config=LLAMA, revision="v1")
    assert "--model-path 'my target' --revision v1 --speculative-algorithm EAGLE3" in served.lines["sglang"]
    assert "--speculative-draft-model-quantization unquant --dtype bfloat16" in served.lines["sglang"]
    assert "vllm serve 'my target' --revision v1 --speculative-config" in served.lines["vllm"]
    assert "--dtype bfloat16" in served.lines["vllm"]
    assert "norm_output" in served.notes(config)[0]
    assert list(serve("t", "d", config, steps=3, layout="vllm", target_config=LLAMA).lines) == ["vllm"]
    mixtral = serve("t", "d", config, steps=3, layout="sglang", target_config={"architectures": ["MixtralForCausalLM"]})
    assert list(mixtral.lines) == ["vllm"]
    assert "--model-impl transformers" in mixtral.lines["vllm"]
    assert "SGLang 0.5.23 has no auxiliary states of MixtralForCausalLM" in mixtral.refused["sglang"]
    rope = {"type": "longrope", "short_factor": [1.0]}
    long = {**LLAMA, "rope_scaling": rope, "original_max_position_embeddings": 128}
    assert "--max-model-len 128" in serve("t", "d", config, steps=3, layout="vllm", target_config=long).lines["vllm"]
    short = {**long, "original_max_position_embeddings": 4096}  # longer than the target's own context
    assert "--max-model-len" not in serve("t", "d", config, steps=3, layout="vllm", target_config=short).lines["vllm"]


def test_a_folder_for_a_class_with_other_numbers_reads_back() -> None:
    raw = replace(DraftConfig.from_target(DEEPSEEK), aux_layers=(2, 4, 5)).to_sglang()
    raw["eagle_config"]["eagle_aux_hidden_state_layer_ids"] = [3, 5, 6]
    assert named_aux_layers({**raw, "target_architectures": ["DeepseekV3ForCausalLM"]}) == (2, 4, 5)
    assert named_aux_layers(raw) == (3, 5, 6)  # of another program: as its own list says


def family_of(config: str) -> str:
    """The case of the engine tests that stands for a packaged config."""
    if config == "phi-4-mini":
        return "phi4-mini"
    if config in LATENT:
        return "latent-v2" if config == "deepseek-v2-lite-mla" else "latent"
    names = {
        **{"DeepseekV3ForCausalLM": "deepseek-v3", "Phi3ForCausalLM": "phi3", "Glm4MoeForCausalLM": "glm4-moe"},
        "Gemma3ForConditionalGeneration": "gemma3-vision",
        "Llama4ForConditionalGeneration": "llama4-vision",
    }
    kind = packaged_target_class(config)
    assert kind is not None
    plain = kind.removesuffix("ForCausalLM").lower()
    usual = {"qwen3moe": "qwen3-moe", "gptoss": "gpt-oss", "deepseekv2": "deepseek-v2"}
    return names.get(kind, usual.get(plain, plain))


def test_every_packaged_config_stands_in_the_table() -> None:
    assert [name for name, _, _ in support_table()] == [name for name in packaged_configs() if name != ANY_LATENT]
    assert {name for name, _, _ in support_table()} == {*TARGETS, *LATENT}


def test_every_class_has_a_packaged_config_or_is_named_as_one_without() -> None:
    packaged = {kind for _, kind, _ in support_table()}
    assert KNOWN["sglang"] | KNOWN["vllm"] == packaged | set(TEXT_OF) | NO_NUMBERS | MORE_THAN_TEXT
    assert set(TEXT_OF.values()) <= packaged
    assert not packaged & (set(TEXT_OF) | NO_NUMBERS | MORE_THAN_TEXT)


@pytest.mark.parametrize("engine", ENGINES)
def test_every_line_that_says_served_is_run_by_the_engine_tests(engine: Engine) -> None:
    cases = {name for name in CASES if name not in VLLM_ALONE}
    for name, kind, by_engine in support_table():
        status, reason = by_engine[engine]
        case = family_of(name)
        if status == "served":
            assert case in cases, name
            assert (engine, case) not in REFUSED, name
            assert kind in RUN[engine]
        else:
            assert reason, name
        if (engine, case) in REFUSED:
            assert status == "refused", name
            assert REFUSED[engine, case] in reason


def test_the_page_has_the_table() -> None:
    text = (ROOT / "examples" / "models.md").read_text()
    assert text.partition(BEGIN)[2].partition(END)[0].strip() == markdown().strip(), (
        "python -m tests.models.engine_table"
    )


def test_a_line_for_llamacpp() -> None:
    config = replace(DraftConfig.from_target(LLAMA), norm_output=False)
    served = serve("my target.gguf", "d/draft-BF16.gguf", config, steps=3, layout="gguf", target_config=LLAMA)
    words = "--model-draft d/draft-BF16.gguf --spec-type draft-eagle3 --spec-draft-n-max 3"
    line = f"llama-server -m 'my target.gguf' {words} --host 127.0.0.1 --port 30000"
    assert (served.lines, served.refused) == ({"llama.cpp": line}, {})
    phi = {**LLAMA, "architectures": ["Phi3ForCausalLM"]}
    refused = serve("t", "d.gguf", config, steps=3, layout="gguf", target_config=phi)
    assert refused.refused == {"llama.cpp": "llama.cpp 0.5.0-dev has no auxiliary states of Phi3ForCausalLM"}
    last = replace(config, aux_layers=(1, 4, 7))
    assert "the target's last" in refusals(last, "gguf", LLAMA)[0]
    assert refusals(last, "gguf", {**LLAMA, "architectures": ["GptOssForCausalLM"]}) == []
    dynamic = replace(config, rope_scaling={"rope_type": "dynamic", "factor": 2.0})
    assert "(dynamic) changes with the length" in refusals(dynamic, "gguf", LLAMA)[0]


def test_the_sets_do_not_overlap() -> None:
    assert not SGLANG & SGLANG_FIRST_IS_1
    assert set(CHECKED) == set(ENGINES) == set(RUN)
