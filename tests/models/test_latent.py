"""Drafts of latent attention (MLA): DeepSeek's own numbers, the loaders' names, configs, and who takes them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import DeepseekV3Config
from transformers.models.deepseek_v3.modeling_deepseek_v3 import DeepseekV3Attention, DeepseekV3RotaryEmbedding

from eagle3cli.models.checkpoint import check_folder, load_draft, read_tensors, save_draft
from eagle3cli.models.config import DraftConfig, read_draft_config
from eagle3cli.models.contract import folder_shapes, refusals
from eagle3cli.models.draft import Draft, causal_attention
from eagle3cli.models.layers.latent import LatentAttention
from eagle3cli.models.layers.sizes import Latent
from eagle3cli.models.serve import serve, unserved
from eagle3cli.training.forecast.memory import draft_weights
from eagle3cli.training.initial.latent import latent_to_own_row
from tests.failing import fails
from tests.models.targets import ANY_LATENT, LATENT, TARGETS

H, Q, KV, NOPE, ROPE, V, HEADS, MLP = 16, 12, 10, 6, 4, 7, 4, 40
YARN = {
    "rope_type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "mscale": 0.6,
    "mscale_all_dim": 1.2,
}
SIZES = {"kv_lora_rank": KV, "q_lora_rank": Q, "qk_nope_head_dim": NOPE, "qk_rope_head_dim": ROPE, "v_head_dim": V}
TARGET: dict[str, Any] = {
    **{"architectures": ["DeepseekV3ForCausalLM"], "hidden_size": H, "intermediate_size": MLP, "vocab_size": 40},
    **{"num_attention_heads": HEADS, "num_hidden_layers": 8, "max_position_embeddings": 64, "rms_norm_eps": 1e-6},
    **{"rope_theta": 100.0, "rope_scaling": YARN, **SIZES},
}
CONFIG = DraftConfig.from_target(TARGET, draft_vocab_size=20, latent={})
PLAIN_QUERIES = replace(CONFIG, latent=Latent(KV, None, NOPE, ROPE, V))


@pytest.mark.parametrize("config", [CONFIG, PLAIN_QUERIES], ids=["latent queries", "plain queries"])
@torch.no_grad()
def test_the_attention_is_deepseeks(config: DraftConfig) -> None:
    torch.manual_seed(0)
    ours = LatentAttention(config, latent_of(config), H)
    keys = {**SIZES, "q_lora_rank": config.latent and config.latent.q_lora_rank}
    theirs_config = DeepseekV3Config(
        **{"hidden_size": H, "num_attention_heads": HEADS, "num_key_value_heads": HEADS, **keys},
        **{"rope_parameters": {**YARN, "rope_theta": 100.0}, "max_position_embeddings": 64},
        attn_implementation="eager",
    )
    theirs = DeepseekV3Attention(theirs_config, 0)
    for weight in ours.parameters():
        torch.nn.init.normal_(weight, std=0.6)
    theirs.load_state_dict(ours.state_dict())
    x_SH = torch.randn(9, H)
    position_S = torch.arange(9) + 3
    rope = DeepseekV3RotaryEmbedding(theirs_config)(x_SH, position_S[None])
    mask = torch.full((9, 9), float("-inf")).triu(1)[None, None]
    expected, *_ = theirs(x_SH[None], rope, mask)
    attended = causal_attention(ours, None, Draft(config).rope(position_S, torch.float32), None, x_SH)
    torch.testing.assert_close(ours.output(attended), expected[0], rtol=1e-4, atol=1e-5)


def latent_of(config: DraftConfig) -> Latent:
    assert config.latent is not None
    return config.latent


def stacked(shapes: dict[str, tuple[int, ...]], fused: dict[str, list[str]]) -> dict[str, tuple[int, ...]]:
    """Matrices that a loader puts upon each other, under the joint name."""
    shapes = dict(shapes)
    for joint, parts in fused.items():
        for name in [name for name in shapes if f".{parts[0]}." in name]:
            taken = [shapes.pop(name.replace(parts[0], part)) for part in parts]
            assert len({shape[1] for shape in taken}) == 1
            shapes[name.replace(parts[0], joint)] = (sum(shape[0] for shape in taken), taken[0][1])
    return shapes


def in_sglang(name: str) -> str:
    """Where ``kimi_k25_eagle3.py`` of SGLang 0.5.23 looks for a tensor."""
    name = re.sub(r"^layers\.0\.", "midlayer.", name)
    return name if name.startswith("lm_head.") else f"model.{name}"


def in_vllm(name: str) -> str:
    """Where ``deepseek_eagle3.py`` of vLLM 0.32.0 looks for one."""
    if name == "d2t":
        return "draft_id_to_target_id"
    return name if "lm_head" in name else f"model.{name.replace('midlayer.', 'layers.0.')}"


@pytest.mark.parametrize(
    ("layer", "place", "fused_a", "mapping"),
    [
        ("model.midlayer", in_sglang, "fused_qkv_a_proj_with_mqa", {}),
        ("model.layers.0", in_vllm, "fused_qkv_a_proj", {"draft_id_to_target_id": (20,)}),
    ],
    ids=["sglang", "vllm"],
)
def test_names_and_shapes_are_those_of_the_loaders(
    layer: str, place: Callable[[str], str], fused_a: str, mapping: dict[str, tuple[int, ...]]
) -> None:
    """Each parameter that the engine's module has (but for the embedding, which is the target's) gets its tensor."""
    own = {
        **{
            f"{layer}.self_attn.{fused_a}.weight": (Q + KV + ROPE, 2 * H),
            f"{layer}.self_attn.q_a_layernorm.weight": (Q,),
        },
        f"{layer}.self_attn.q_b_proj.weight": (HEADS * (NOPE + ROPE), Q),
        f"{layer}.self_attn.kv_a_layernorm.weight": (KV,),
        f"{layer}.self_attn.kv_b_proj.weight": (HEADS * (NOPE + V), KV),
        f"{layer}.self_attn.o_proj.weight": (H, HEADS * V),
        **{f"{layer}.mlp.gate_up_proj.weight": (2 * MLP, H), f"{layer}.mlp.down_proj.weight": (H, MLP)},
        **{f"{layer}.{norm}.weight": (H,) for norm in ("input_layernorm", "hidden_norm", "post_attention_layernorm")},
        **{f"model.fc_norm.{i}.weight": (H,) for i in range(3)},
        **{"model.fc.weight": (H, 3 * H), "model.norm.weight": (H,), "lm_head.weight": (20, H), **mapping},
    }
    beside = {"t2d"} | ({"d2t"} if not mapping else set())  # read apart from the parameters
    shapes = {name: shape for name, shape in folder_shapes(replace(CONFIG, fc_norm=True)).items() if name not in beside}
    fused = {"gate_up_proj": ["gate_proj", "up_proj"], fused_a: ["q_a_proj", "kv_a_proj_with_mqa"]}
    assert stacked({place(name): shape for name, shape in shapes.items()}, fused) == own


def test_a_folder_says_what_both_loaders_read(tmp_path: Path) -> None:
    draft = Draft(CONFIG)
    draft.set_vocab(torch.arange(20), torch.arange(40) % 2 == 0)
    save_draft(tmp_path, draft.serving_state(), CONFIG, target=TARGET)
    raw = json.loads((tmp_path / "config.json").read_text())
    assert raw["architectures"] == ["Eagle3DeepseekV2ForCausalLM"]
    assert raw["model_type"] == "deepseek_v2"  # vLLM makes an MTP draft of deepseek_v3
    assert SIZES.items() <= raw.items()
    assert raw["rope_interleave"] is True
    assert raw["num_key_value_heads"] == HEADS
    assert "head_dim" not in raw  # which means other things to the engines
    config, state = load_draft(tmp_path, target=TARGET)
    assert config == replace(CONFIG, dtype="bfloat16")
    Draft(config).load_state_dict(state)
    (tmp_path / "config.json").write_text(json.dumps({**raw, "v_head_dim": 9, "model_type": "kimi_k2"}))
    with fails("unservable-draft", "model_type", "kimi_k2", "kv_b_proj.weight", "52", "10"):
        check_folder(tmp_path, target=TARGET)
    other = {"architectures": ["Eagle3DeepseekV3ForCausalLM"], "model_type": "kimi_k2"}  # as other programs write it
    (tmp_path / "config.json").write_text(json.dumps({**raw, **other}))
    theirs = {re.sub("^midlayer", "layers.0", name): value for name, value in read_tensors(tmp_path).items()}
    save_file(theirs, tmp_path / "model.safetensors")
    again, loaded = load_draft(tmp_path, target=TARGET)
    assert again == config
    assert all(torch.equal(loaded[name], value) for name, value in state.items())


@pytest.mark.parametrize("name", LATENT)
def test_a_packaged_one_is_the_targets(name: str) -> None:
    _, parameters, target = LATENT[name]
    config = read_draft_config(name, target, draft_vocab_size=None, aux_layers=None)
    for other in (ANY_LATENT, "auto"):
        same = read_draft_config(other, target, draft_vocab_size=None, aux_layers=None)
        assert (same == config) is (other == ANY_LATENT)
    with torch.device("meta"):
        assert sum(weight.numel() for weight in Draft(config).parameters()) == parameters == draft_weights(config)
    h, heads = config.hidden_size, config.num_attention_heads
    first = 2 * h * (1536 + 512 + 64) + 1536 + 512
    inner = 1536 * heads * 192 + 512 * heads * 256 + heads * 128 * h
    assert parameters == first + inner + 3 * h * config.intermediate_size + 3 * h * h + 32000 * h + 5 * h - h


def few(target: dict[str, Any] = TARGET, **keys: Any) -> Callable[[Path], DraftConfig]:
    def read(folder: Path) -> DraftConfig:
        (folder / "few.json").write_text(json.dumps(keys))
        return read_draft_config(str(folder / "few.json"), target, draft_vocab_size=None, aux_layers=None)

    return read


def test_a_file_of_a_few_keys(tmp_path: Path) -> None:
    named = {"architectures": ["Eagle3DeepseekV2ForCausalLM"]}
    assert few(**named)(tmp_path) == replace(CONFIG, draft_vocab_size=40)
    assert few(kv_lora_rank=8)(tmp_path).latent == replace(latent_of(CONFIG), kv_lora_rank=8)
    assert few(**named, q_lora_rank=None)(tmp_path).latent == PLAIN_QUERIES.latent
    without = {**TARGET, "q_lora_rank": None}
    assert few(without, **named)(tmp_path).latent == replace(latent_of(CONFIG), q_lora_rank=3 * KV)
    llama = few(TARGETS["llama-3.1-8b"][2], **named, **SIZES)(tmp_path)
    assert (llama.latent, llama.rope_theta, llama.rope_scaling) == (CONFIG.latent, 500000.0, None)


BAD: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another target": (TARGETS["qwen3-8b"][2], {}, "kv_lora_rank"),
    "another RoPE": (TARGET, {"rope_scaling": {"rope_type": "linear", "factor": 2.0}}, "linear"),
    "a factor that is none": (TARGET, {"rope_scaling": {**YARN, "factor": "4"}}, "factor"),
    "no truncation": (TARGET, {"rope_scaling": {**YARN, "truncate": False}}, "truncate"),
    "odd channels": (TARGET, {"qk_rope_head_dim": 5}, "qk_rope_head_dim"),
    "a size that is none": (TARGET, {"v_head_dim": "wide"}, "v_head_dim"),
    "half-split channels": (TARGET, {"rope_interleave": False}, "rope_interleave"),
    "a whole one without": (
        TARGET,
        {key: value for key, value in CONFIG.to_sglang().items() if key != "q_lora_rank"},
        "q_lora_rank",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_no_engine_would_compute_is_refused(name: str, tmp_path: Path) -> None:
    target, keys, value = BAD[name]
    with fails("draft-config", value):
        few(target, **{"architectures": ["Eagle3DeepseekV2ForCausalLM"], **keys})(tmp_path)


def test_who_serves_it() -> None:
    assert list(unserved(CONFIG, TARGET)) == ["llama.cpp"]
    assert list(unserved(PLAIN_QUERIES, TARGET)) == ["sglang", "llama.cpp"]
    assert list(unserved(replace(CONFIG, window=9), TARGET)) == ["sglang", "vllm", "llama.cpp"]
    assert list(unserved(replace(CONFIG, norm_before_fc=True), TARGET)) == ["sglang", "vllm", "llama.cpp"]
    assert list(unserved(replace(CONFIG, num_hidden_layers=2), TARGET)) == ["sglang", "llama.cpp"]
    usual = {**TARGET, "architectures": ["LlamaForCausalLM"], "kv_lora_rank": None}
    assert "was not tried" in unserved(CONFIG, usual)["vllm"]
    assert "no latent attention" in refusals(CONFIG, "speculators", TARGET)[0]
    assert any("latent attention is unknown" in reason for reason in refusals(CONFIG, "legacy", TARGET))
    served = serve("t", "d", CONFIG, steps=3, layout="sglang", target_config=TARGET)
    assert list(served.lines) == ["sglang", "vllm"]
    assert (served.needs["sglang"], served.needs["vllm"]) == ("0.5.13", "0.32.0")


@torch.no_grad()
@pytest.mark.parametrize("config", [CONFIG, PLAIN_QUERIES], ids=["latent queries", "plain queries"])
def test_initial_weights_read_the_newest_token(config: DraftConfig) -> None:
    """Each position gives about the map of its own token, of the latent's rank, whatever stands before it."""
    torch.manual_seed(0)
    draft = Draft(config)
    attention = draft.midlayer.self_attn
    assert isinstance(attention, LatentAttention)
    token_RH = torch.randn(400, H) @ torch.randn(H, H)
    left, sizes, right = torch.linalg.svd(torch.randn(H, H))
    map_HH: Tensor = left[:, :KV] * sizes[:KV] @ right[:KV]
    latent_to_own_row(attention, map_HH, token_RH)
    read_SX = torch.cat((token_RH[:12], torch.zeros(12, H)), 1)
    attended = causal_attention(attention, None, draft.rope(torch.arange(12), torch.float32), None, read_SX)
    expected = token_RH[:12] @ map_HH.T
    apart = (attention.output(attended) - expected).pow(2).mean() / expected.pow(2).mean()
    assert float(apart) < 0.35
