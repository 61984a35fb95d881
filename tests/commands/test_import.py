"""eagle3 import: folders as EAGLE, SpecForge and speculators write them; what computes something else is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from eagle3cli.models.checkpoint import check_folder, load_draft
from eagle3cli.models.config import DraftConfig
from eagle3cli.models.draft import Draft
from tests.conftest import RunCli


@pytest.fixture
def draft(tiny: Path) -> Draft:
    torch.manual_seed(0)
    config = DraftConfig.from_target(json.loads((tiny / "config.json").read_text()), draft_vocab_size=50)
    draft = Draft(config)
    t2d = torch.zeros(config.vocab_size, dtype=torch.bool)
    t2d[100:200:2] = True
    draft.set_vocab(t2d.nonzero()[:, 0] - torch.arange(50), t2d)
    return draft


def eagle(folder: Path, draft: Draft, **changes: Any) -> Path:
    """As the EAGLE authors publish: a pickle of plain tensors in fp16, a short config, no auxiliary layers."""
    folder.mkdir()
    short = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size")
    raw = {key: value for key, value in draft.config.to_sglang().items() if key in (*short, "draft_vocab_size")}
    extra = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 1, "bias": False}
    (folder / "config.json").write_text(json.dumps({**raw, **extra, "rms_norm_eps": 1e-5, **changes}))
    state = {n: v.half() if v.is_floating_point() else v for n, v in draft.serving_state().items()}
    torch.save(state, folder / "pytorch_model.bin")
    return folder


def speculators(folder: Path, draft: Draft, embedding: Tensor, **changes: Any) -> Path:
    """As speculators writes: the layer's config inside, layers counted from 0, layer ids as vLLM counts them."""
    folder.mkdir()
    raw = draft.config.to_sglang()
    inner = {k: v for k, v in raw.items() if k not in ("eagle_config", "draft_vocab_size", "norm_output")}
    outer = {
        "speculators_model_type": "eagle3",
        "architectures": ["Eagle3DraftModel"],
        "transformer_layer_config": inner,
        "draft_vocab_size": draft.config.draft_vocab_size,
        "norm_before_residual": False,
        "norm_output": True,
        "eagle_aux_hidden_state_layer_ids": [layer + 1 for layer in draft.config.aux_layers],
        "speculators_config": {"algorithm": "eagle3", "proposal_methods": [{"speculative_tokens": 3}]},
    }
    (folder / "config.json").write_text(json.dumps({**outer, **changes}))
    state = {name.replace("midlayer.", "layers.0."): value for name, value in draft.serving_state().items()}
    state |= {"embed_tokens.weight": embedding, "verifier_norm.weight": torch.ones(64)}
    save_file(state, folder / "model.safetensors")
    return folder


def test_an_official_folder(run_cli: RunCli, draft: Draft, tiny: Path, tmp_path: Path) -> None:
    source = eagle(tmp_path / "official", draft)
    ran = run_cli("import", "--draft-model-path", source, "--target-model-path", tiny, "--output-path", "ours")
    assert ran.code == 0, ran.err
    assert "does not name its auxiliary layers; [1, 3, 4] written" in ran.err
    assert "max_position_embeddings 2048 became the target's 512" in ran.err
    config = check_folder(tmp_path / "ours", target=json.loads((tiny / "config.json").read_text()))
    assert (config.dtype, config.norm_output, config.aux_layers) == ("float16", False, (1, 3, 4))
    written = load_draft(tmp_path / "ours")[1]
    for name, value in draft.serving_state().items():
        assert torch.equal(written[name], value.half() if value.is_floating_point() else value)
    without = run_cli("import", "--draft-model-path", source, "--output-path", "other")
    assert (without.code, "--aux-layers" in without.err) == (1, True)


def test_a_speculators_folder(run_cli: RunCli, draft: Draft, tiny: Path, tmp_path: Path) -> None:
    embedding = load_file(tiny / "model.safetensors")["model.embed_tokens.weight"]
    source = speculators(tmp_path / "theirs", draft, embedding)
    words = ("--draft-model-path", source, "--target-model-path", tiny)
    ran = run_cli("import", *words, "--output-path", "ours", "--json")
    assert ran.code == 0, ran.err
    assert (ran.json["aux_layers"], ran.json["layout"]) == ([1, 3, 4], "sglang")
    assert "equals the target's and was left out" in ran.err
    config, state = load_draft(tmp_path / "ours")
    assert (config.norm_output, config.norm_before_residual, config.own_embedding) == (True, False, False)
    assert all(torch.equal(value, state[name]) for name, value in draft.serving_state().items())
    raw = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**raw, "norm_before_residual": True}))
    theirs = run_cli("import", *words, "--output-path", "residual", "--json")
    assert (theirs.code, theirs.json["layout"], theirs.json["served_by"]) == (0, "vllm", ["vllm"]), theirs.err
    refused = run_cli("export", *words, "--output-path", "x")
    assert (refused.code, refused.error == "unservable-draft") == (1, True)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"speculators_model_type": "dflash"}, "a dflash draft, not EAGLE-3"),
        ({"transformer_layer_config": {"model_type": "qwen3"}}, "its layer is qwen3's"),
        ({"transformer_layer_config": {"model_type": "llama", "attention_bias": True}}, "attention_bias is true"),
    ],
)
def test_what_computes_something_else_is_refused(
    run_cli: RunCli, draft: Draft, tiny: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    source = speculators(tmp_path / "theirs", draft, torch.zeros(320, 64), **changes)
    ran = run_cli("import", "--draft-model-path", source, "--target-model-path", tiny, "--output-path", "ours")
    assert ran.code == 1
    assert said in ran.err
    assert not (tmp_path / "ours").exists()


def test_an_older_eagle_and_a_biased_one_are_refused(run_cli: RunCli, draft: Draft, tiny: Path, tmp_path: Path) -> None:
    biased = eagle(tmp_path / "biased", draft, bias=True)
    words = ("--target-model-path", tiny, "--output-path", "ours")
    assert run_cli("import", "--draft-model-path", biased, *words).error == "not-a-draft"
    older = eagle(tmp_path / "older", draft)
    torch.save(
        {"fc.weight": torch.zeros(64, 128), "layers.0.mlp.up_proj.weight": torch.zeros(1)}, older / "pytorch_model.bin"
    )
    assert run_cli("import", "--draft-model-path", older, *words).error == "not-a-draft"
    assert "EAGLE-1" in run_cli("import", "--draft-model-path", older, *words).err
    assert "EAGLE-2" in run_cli("import", "--draft-model-path", older, *words).err
    assert run_cli("import", *words).code == 2
