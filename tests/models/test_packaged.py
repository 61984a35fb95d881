"""Every packaged draft config: that of its target, of the right size, trainable, exportable, fit for a server."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from eagle3cli.models.checkpoint import check_folder, load_draft, save_draft
from eagle3cli.models.config import DraftConfig, read_draft_config
from eagle3cli.models.draft import Draft
from eagle3cli.models.packaged import packaged_configs
from eagle3cli.training.ttt.unroll import plan_positions, unroll
from tests.conftest import RunCli
from tests.failing import fails
from tests.models.targets import ANY_LATENT, LATENT, TARGETS

WANTED = (
    *("llama-3-", "llama-3.1-", "llama-3.2-", "llama-3.3-", "llama-4-scout", "llama-4-maverick", "qwen2.5-", "qwen3-"),
    *("qwen3-coder-", "phi-4", "phi-4-mini", "deepseek-v2-lite", "deepseek-v3", "deepseek-r1", "gpt-oss-20b"),
    *("gpt-oss-120b", "qwq-32b", "gemma-3-", "mistral-", "mixtral-", "glm-4-"),
)


def test_every_family_is_there() -> None:
    assert set(packaged_configs()) == {*TARGETS, *LATENT, ANY_LATENT}
    for prefix in WANTED:
        assert any(name.startswith(prefix) for name in TARGETS), prefix


@pytest.mark.parametrize("name", TARGETS)
def test_it_is_what_auto_derives_and_has_the_parameters_of_the_table(name: str) -> None:
    _, parameters, target = TARGETS[name]
    config = read_draft_config(name, target, draft_vocab_size=None, aux_layers=None)
    assert config == read_draft_config("auto", target, draft_vocab_size=None, aux_layers=None)
    with torch.device("meta"):
        draft = Draft(config)
    assert sum(weight.numel() for weight in draft.parameters()) == parameters
    h, i, q, kv = config.hidden_size, config.intermediate_size, config.num_attention_heads, config.num_key_value_heads
    by_hand = 2 * h * (q + 2 * kv) * config.head_dim + q * config.head_dim * h + 3 * h * i
    assert h % q == 0  # or no server builds the layer
    assert parameters == by_hand + 3 * h * h + config.draft_vocab_size * h + 4 * h


def narrow(config: DraftConfig) -> DraftConfig:
    """The same draft at a width that a test can train: the heads' proportions, RoPE, layers and options stay."""
    heads = max(n for n in range(1, 9) if config.num_attention_heads % n == 0)
    groups = max(n for n in range(1, heads + 1) if config.num_key_value_heads % n == 0 and heads % n == 0)
    return replace(
        config,
        **{"hidden_size": 8 * heads, "target_hidden_size": 8 * heads, "intermediate_size": 48, "vocab_size": 64},
        **{"draft_vocab_size": 24, "num_attention_heads": heads, "num_key_value_heads": groups},
    )


@pytest.mark.parametrize("name", TARGETS)
def test_it_trains_a_step_and_passes_the_loader_check(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    target = TARGETS[name][2]
    config = narrow(read_draft_config(name, target, draft_vocab_size=None, aux_layers=None))
    draft = Draft(config)
    ids = torch.arange(0, 48, 2)
    draft.set_vocab(ids - torch.arange(24), torch.zeros(64, dtype=torch.bool).index_fill(0, ids, True))
    tokens, aux = torch.randint(0, 64, (20,)), torch.randn(20, 3 * config.hidden_size)
    plan = plan_positions(torch.ones(20, dtype=torch.bool), (0, 20), torch.ones(20, dtype=torch.bool), 3, "serving")
    embedding = torch.randn(64, config.hidden_size)
    before = draft.fc.weight.clone()
    loss = sum(draft.lm_head(h).logsumexp(-1).mean() for h in unroll(draft, tokens, aux, embedding, plan))
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    assert all(w.grad is not None and torch.isfinite(w.grad).all() for w in draft.parameters())
    torch.optim.AdamW(draft.parameters(), lr=1e-3).step()
    assert not torch.equal(before, draft.fc.weight)
    save_draft(tmp_path, draft.serving_state(), config)
    small = {**target, "vocab_size": 64, "hidden_size": config.hidden_size}
    check_folder(tmp_path, target=small)
    check_folder(tmp_path, target=small, layout="vllm")
    read, state = load_draft(tmp_path)
    assert read == replace(config, dtype="bfloat16")
    Draft(read).load_state_dict(state)


def family_names() -> list[str]:
    from tests.families import FAMILIES

    return [name for name in FAMILIES if name not in ("nemotron", "phi", "gpt-neox", "starcoder2")]


@pytest.mark.parametrize("name", family_names())
def test_auto_reads_a_targets_file_as_transformers_does(name: str, tmp_path: Path) -> None:
    from transformers import AutoConfig

    from tests.families import family_config

    family_config(name).save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    wanted = DraftConfig.from_target(AutoConfig.from_pretrained(tmp_path).to_dict())
    assert DraftConfig.from_target(raw) == wanted
    with torch.device("meta"):
        draft = Draft(wanted)
    draft.rotary = type(draft.rotary)(draft.rotary.config)  # older torch computes no tables on the meta device
    draft.rope(torch.arange(4), torch.float32)


ROPES: list[tuple[dict[str, Any], dict[str, Any] | None]] = [
    ({"rope_theta": 5e5}, None),
    ({"rope_scaling": {"type": "linear", "factor": 4.0}}, {"rope_type": "linear", "factor": 4.0}),
    ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}}, None),
    ({"rope_scaling": {"rope_type": "default", "mrope_section": [2, 3, 3], "mrope_interleaved": True}}, None),
    ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, None),
    (
        {"rope_scaling": {"type": "yarn", "factor": 4.0}},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 4096},
    ),
    (
        {"original_max_position_embeddings": 1024, "rope_scaling": {"type": "longrope", "short_factor": [1.0]}},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 1024},
    ),
    (
        {
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
            }
        },
        {"rope_type": "linear", "factor": 8.0},
    ),
]


@pytest.mark.parametrize(("keys", "wanted"), ROPES)
def test_rope_is_reduced_to_what_every_server_computes(keys: dict[str, Any], wanted: dict[str, Any] | None) -> None:
    shape = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 8, "vocab_size": 100}
    config = DraftConfig.from_target({**shape, "max_position_embeddings": 4096, **keys})
    assert config.rope_scaling == wanted
    inner = {"text_config": {**shape, "max_position_embeddings": 4096, **keys}, "model_type": "some-vl"}
    assert DraftConfig.from_target(inner) == config


def test_a_file_of_a_few_keys_changes_auto(tmp_path: Path) -> None:
    target = TARGETS["qwen3-8b"][2]
    auto = read_draft_config("auto", target, draft_vocab_size=None, aux_layers=None)
    wide = {"num_hidden_layers": 2, "intermediate_size": 16384, "own_embedding": True}
    layers = {"eagle_config": {"eagle_aux_hidden_state_layer_ids": [1, 9, 17, 25, 32]}}
    (tmp_path / "wide.json").write_text(json.dumps({**wide, **layers}))
    config = read_draft_config(str(tmp_path / "wide.json"), target, draft_vocab_size=None, aux_layers=None)
    assert config == replace(auto, **wide, aux_layers=(1, 9, 17, 25, 32))


def test_a_draft_proposes_at_most_all_of_a_small_vocabulary() -> None:
    target = {**TARGETS["qwen3-8b"][2], "vocab_size": 320}
    sizes = [
        read_draft_config("auto", target, draft_vocab_size=n, aux_layers=None).draft_vocab_size for n in (100, 8192)
    ]
    assert sizes == [100, 320]


def test_a_config_of_another_target_or_name_is_refused(run_cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    with fails("other-target", "vocab_size", "151936", "128256"):
        read_draft_config("qwen3-8b", TARGETS["llama-3.1-8b"][2], draft_vocab_size=None, aux_layers=None)
    with fails("other-target", "vocab_size", "163840") as latent:
        read_draft_config("kimi-k2-mla", TARGETS["deepseek-v3"][2], draft_vocab_size=None, aux_layers=None)
    assert str(latent.value.fix).startswith("use --draft-model-config mla;")  # auto has no latent attention
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"messages": []}')
    ran = run_cli(
        "cache", "--target-model-path", tiny, "--draft-model-config", "llama3.1-8b", "--train-data-path", rows
    )
    assert ran.code == 1
    assert ran.error == "no-such-path"
    assert "llama-3.1-8b" in ran.err


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("Mpt", {"d_model": 48, "n_heads": 6, "n_layers": 10, "max_seq_len": 64}),
        (
            "XGLM",
            {"d_model": 48, "attention_heads": 6, "num_layers": 10, "ffn_dim": 192, "max_position_embeddings": 64},
        ),
        ("GPTJ", {"n_embd": 48, "n_head": 6, "n_layer": 10, "n_positions": 64, "rotary_dim": 8}),
    ],
)
def test_sizes_are_read_under_the_names_of_older_families(name: str, own: dict[str, Any]) -> None:
    target = getattr(transformers, f"{name}Config")(vocab_size=320, **own).to_dict()
    config = DraftConfig.from_target(target, draft_vocab_size=64)
    sizes = (config.hidden_size, config.intermediate_size, config.num_attention_heads, config.head_dim)
    assert (*sizes, config.max_position_embeddings, config.aux_layers) == (48, 192, 6, 8, 64, (1, 4, 6))


@pytest.mark.parametrize(
    ("own", "kv_heads"),
    [
        ({"num_kv_heads": 2, "new_decoder_architecture": True, "multi_query": True}, 2),  # Falcon-40B
        ({"num_kv_heads": 2, "new_decoder_architecture": False, "multi_query": True}, 1),  # Falcon-7B
        ({"num_kv_heads": 2, "new_decoder_architecture": False, "multi_query": False}, 6),
        ({"attn_config": {"kv_n_heads": 3}}, 3),
    ],
)
def test_heads_of_keys_and_values_under_the_names_of_falcon_and_dbrx(own: dict[str, Any], kv_heads: int) -> None:
    sizes = {"hidden_size": 48, "num_attention_heads": 6, "num_hidden_layers": 10, "vocab_size": 320}
    assert DraftConfig.from_target({**sizes, **own}, draft_vocab_size=64).num_key_value_heads == kv_heads
