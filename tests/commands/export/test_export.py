"""eagle3 export: from a run to a folder that serves, or a clear refusal."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from eagle3cli.models.checkpoint import check_folder, load_draft, save_draft
from eagle3cli.models.config import DraftConfig
from eagle3cli.models.draft import Draft
from tests.conftest import RunCli


@pytest.fixture
def run_folder(tiny: Path, tmp_path: Path) -> Path:
    """What ``eagle3 train`` leaves: checkpoints and the best draft, in fp32."""
    torch.manual_seed(0)
    config = DraftConfig.from_target(json.loads((tiny / "config.json").read_text()), draft_vocab_size=50)
    draft = Draft(config)
    t2d = torch.zeros(config.vocab_size, dtype=torch.bool)
    t2d[100:200:2] = True
    draft.set_vocab(t2d.nonzero()[:, 0] - torch.arange(50), t2d)
    folder = tmp_path / "runs" / "train"
    for name in ("best", "checkpoints/epoch_0_step_5", "checkpoints/epoch_1_step_12"):
        save_draft(folder / name, draft.serving_state(), config, dtype=torch.float32)
    (folder / "settings.toml").write_text(f"[target]\nmodel_path = {json.dumps(str(tiny))}\n")
    return folder


def test_the_best_draft_of_the_default_run(run_cli: RunCli, run_folder: Path, tiny: Path, tmp_path: Path) -> None:
    ran = run_cli("export")
    assert ran.code == 0, ran.err
    assert f"python -m sglang.launch_server --model-path {tiny} --speculative-algorithm EAGLE3" in ran.out
    assert "--speculative-draft-model-path runs/draft" in ran.out
    config = check_folder(tmp_path / "runs" / "draft", target=json.loads((tiny / "config.json").read_text()))
    assert config.dtype == "bfloat16"
    exact, written = load_draft(run_folder / "best")[1], load_draft(tmp_path / "runs" / "draft")[1]
    for name, value in exact.items():
        assert torch.equal(written[name], value.bfloat16() if value.is_floating_point() else value)


@pytest.mark.parametrize(
    ("given", "used"), [("best", "best"), ("checkpoints/epoch_0_step_5", "epoch_0_step_5"), (".", "best")]
)
def test_a_run_or_a_checkpoint(run_cli: RunCli, run_folder: Path, given: str, used: str) -> None:
    ran = run_cli("export", "--draft-model-path", run_folder / given, "--export-dtype", "float32", "--json")
    assert ran.code == 0, ran.err
    assert Path(ran.json["source"]).name == (Path(given).name or "best")
    assert ran.json["same_proposals"] == 1.0
    assert ran.json["largest_change"] == 0.0
    assert "--speculative-num-draft-tokens 6" in ran.json["serve"]


def test_without_best_the_newest_checkpoint(run_cli: RunCli, run_folder: Path) -> None:
    (run_folder / "best" / "config.json").unlink()
    assert Path(run_cli("export", "--json").json["source"]).name == "epoch_1_step_12"


def test_legacy_layout(run_cli: RunCli, run_folder: Path, tmp_path: Path) -> None:
    newer = run_cli("export", "--layout", "legacy", "--output-path", "old")
    assert (newer.code, newer.error == "unservable-draft" and "--no-norm-output" in newer.err) == (1, True), newer.err
    config, state = load_draft(run_folder / "best")
    save_draft(run_folder / "plain", state, replace(config, norm_output=False), dtype=torch.float32)
    plain = ("--draft-model-path", run_folder / "plain", "--output-path", "old")
    assert run_cli("export", "--layout", "legacy", *plain).code == 0
    raw = json.loads((tmp_path / "old" / "config.json").read_text())
    assert "rope_parameters" not in raw
    check_folder(tmp_path / "old", layout="legacy")


def test_nothing_is_overwritten_unasked(run_cli: RunCli, run_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "runs" / "draft").mkdir()
    (tmp_path / "runs" / "draft" / "letter.txt").write_text("dear")
    refused = run_cli("export")
    assert refused.code == 2
    assert "--overwrite" in refused.err
    assert (tmp_path / "runs" / "draft" / "letter.txt").exists()
    assert run_cli("export", "--overwrite").code == 0


def test_the_same_export_again_is_done_already(run_cli: RunCli, run_folder: Path, tmp_path: Path) -> None:
    assert run_cli("export").code == 0
    weights = tmp_path / "runs" / "draft" / "model.safetensors"
    before = weights.stat().st_mtime_ns
    again = run_cli("export")
    assert (again.code, "holds this draft already" in again.err) == (0, True), again.err
    assert "next: eagle3 bench" in again.out
    other = run_cli("export", "--export-dtype", "float32")
    assert (other.code, other.error == "foreign-files") == (2, True)
    assert weights.stat().st_mtime_ns == before
    assert sorted(path.name for path in (tmp_path / "runs").iterdir() if path.name.startswith(".")) == []


def test_a_failed_export_leaves_the_old_folder(run_cli: RunCli, run_folder: Path, tmp_path: Path) -> None:
    assert run_cli("export").code == 0
    weights = run_folder / "best" / "model.safetensors"
    tensors = load_file(weights)
    tensors["fc.weight"][0, 0] = float("nan")
    del tensors["norm.weight"]
    save_file(tensors, weights)
    before = (tmp_path / "runs" / "draft" / "model.safetensors").read_bytes()
    failed = run_cli("export", "--overwrite")
    assert failed.code == 1
    assert failed.error == "unservable-draft"
    assert (tmp_path / "runs" / "draft" / "model.safetensors").read_bytes() == before
    assert [path.name for path in (tmp_path / "runs").iterdir() if path.name.startswith(".")] == []


def test_a_specforge_folder_gets_what_a_server_needs(
    run_cli: RunCli, run_folder: Path, tiny: Path, tmp_path: Path
) -> None:
    source = run_folder / "best"
    raw = json.loads((source / "config.json").read_text())
    for key in ("eagle_config", "eagle_aux_hidden_state_layer_ids", "rope_parameters", "dtype"):
        del raw[key]
    (source / "config.json").write_text(json.dumps({**raw, "max_position_embeddings": 64}))
    tensors = load_file(source / "model.safetensors")
    embedding = load_file(tiny / "model.safetensors")["model.embed_tokens.weight"]
    save_file({**tensors, "embed_tokens.weight": embedding}, source / "model.safetensors")
    ran = run_cli("export")
    assert ran.code == 0, ran.err
    assert "max_position_embeddings 64 became the target's 512" in ran.err
    assert "does not name its auxiliary layers; [1, 3, 4] written" in ran.err
    assert "left out" in ran.err
    assert "embed_tokens.weight" not in load_file(tmp_path / "runs" / "draft" / "model.safetensors")
    save_file({**tensors, "embed_tokens.weight": embedding + 1}, source / "model.safetensors")
    refused = run_cli("export", "--overwrite")
    assert refused.code == 1
    assert refused.error == "unservable-draft"
    assert "--layout" in refused.err
    assert run_cli("export", "--overwrite", "--layout", "vllm").code == 0
    assert "embed_tokens.weight" in load_file(tmp_path / "runs" / "draft" / "model.safetensors")


def test_a_draft_of_another_target_is_refused(run_cli: RunCli, run_folder: Path, tiny: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    raw = json.loads((tiny / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**raw, "vocab_size": 999}))
    ran = run_cli("export", "--target-model-path", other)
    assert ran.code == 1
    assert ran.error == "other-target"
    assert "vocab_size" in ran.err
    assert "320" in ran.err
    assert "999" in ran.err
    assert not (tmp_path / "runs" / "draft").exists()


def test_no_draft_at_all(run_cli: RunCli, tmp_path: Path) -> None:
    ran = run_cli("export")
    assert ran.code == 1
    assert "--draft-model-path" in ran.err


def test_the_card_says_what_the_run_says(run_cli: RunCli, run_folder: Path, tiny: Path, tmp_path: Path) -> None:
    settings = run_folder / "settings.toml"
    more = '[data]\ntrain_path = "/secret/place/train.jsonl"\n[train]\nlearning_rate = 0.0003\n'
    settings.write_text(settings.read_text() + more)
    rows = [
        {"event": "step", "step": 10, "loss": 1.0},
        {
            "event": "eval",
            "step": 20,
            "acceptance_length": [1.5, 1.75],
            "accepted_per_position": [0.5, 0.25],
            "rows": 9,
        },
        {"event": "eval", "step": 30, "acceptance_length": [1.4, 1.5], "accepted_per_position": [0.4, 0.1], "rows": 9},
    ]
    (run_folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"event": "ev')
    ran = run_cli("export", "--license", "mit")
    assert ran.code == 0, ran.err
    card = (tmp_path / "runs" / "draft" / "README.md").read_text()
    for said in (
        "license: mit",
        "| learning_rate | 0.0003 |",
        "| data | train.jsonl |",
        "| 2 | 1.750 | 0.250 |",
        "step 20",
    ):
        assert said in card
    assert f"| target | {tiny.name} |" in card
    assert str(tiny.parent) not in card
    assert "/secret" not in card
    assert "vllm serve" in card
    assert "base_model" not in card  # a local folder is nobody else's
    named = run_cli(
        "export", "--overwrite", "--draft-model-path", tmp_path / "runs" / "draft", "--output-path", "again"
    )
    assert named.code == 0, named.err
    assert "Not measured in its run." in (tmp_path / "again" / "README.md").read_text()


def test_a_wide_draft_is_refused_where_it_cannot_be_served(run_cli: RunCli, run_folder: Path, tmp_path: Path) -> None:
    from dataclasses import replace as with_

    config, _ = load_draft(run_folder / "best")
    wide = with_(config, num_hidden_layers=2, aux_layers=(0, 1, 3, 4, 6), intermediate_size=200)
    draft = Draft(wide)
    draft.set_vocab(
        torch.arange(100, 200, 2) - torch.arange(50),
        torch.arange(320).ge(100) & torch.arange(320).lt(200) & (torch.arange(320) % 2 == 0),
    )
    save_draft(run_folder / "wide", draft.serving_state(), wide, dtype=torch.float32)
    words = ("--draft-model-path", run_folder / "wide", "--overwrite")
    ran = run_cli("export", *words, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["served_by"] == ["sglang", "vllm"]
    tensors = load_file(tmp_path / "runs" / "draft" / "model.safetensors")
    # SGLang reads the one, vLLM the other.
    assert torch.equal(tensors["layers.1.hidden_norm.weight"], tensors["layers.1.input_layernorm.weight"])
    legacy = run_cli("export", *words, "--layout", "legacy")
    assert legacy.code == 1
    for reason in (
        "2 layers; servers that need the legacy layout read exactly one",
        "5 auxiliary layers",
        "norm_output",
    ):
        assert reason in legacy.err
    tensors["layers.1.hidden_norm.weight"] += 1
    save_file(tensors, tmp_path / "runs" / "draft" / "model.safetensors")
    differ = run_cli("export", "--draft-model-path", tmp_path / "runs" / "draft", "--output-path", "x")
    assert (differ.code, differ.error == "draft-config") == (1, True)


def test_the_format_of_speculators_and_back(run_cli: RunCli, run_folder: Path, tiny: Path, tmp_path: Path) -> None:
    ran = run_cli("export", "--layout", "speculators", "--export-dtype", "float32", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["serve_lines"] == {"vllm": "vllm serve runs/draft --dtype float32 --host 127.0.0.1 --port 30000"}
    folder = tmp_path / "runs" / "draft"
    raw = json.loads((folder / "config.json").read_text())
    assert raw["speculators_config"]["verifier"] == {
        "name_or_path": str(tiny),
        "architectures": ["LlamaForCausalLM"],
    }
    assert raw["speculators_config"]["proposal_methods"][0]["speculative_tokens"] == 5
    assert (raw["norm_before_residual"], raw["norm_output"]) == (False, True)
    assert raw["eagle_aux_hidden_state_layer_ids"] == [2, 4, 5]
    names = load_file(folder / "model.safetensors").keys()
    assert "layers.0.hidden_norm.weight" in names
    assert not any(name.startswith("midlayer") for name in names)
    back = run_cli("import", "--draft-model-path", folder, "--output-path", "back", "--json")
    assert back.code == 0, back.err
    assert "the target is not known" not in back.err  # the config names it
    config, state = load_draft(run_folder / "best")
    read_back, tensors = load_draft(tmp_path / "back")
    assert read_back == config
    assert all(torch.equal(value, tensors[name]) for name, value in state.items())


def test_speculators_wide_and_whole(run_cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    """Two layers, five auxiliary layers, the whole vocabulary: what vLLM reads under other names, and counts."""
    raw = json.loads((tiny / "config.json").read_text())
    config = DraftConfig.from_target(raw, draft_vocab_size=raw["vocab_size"], aux_layers=(0, 1, 2, 3, 4))
    config = replace(config, num_hidden_layers=2)
    torch.manual_seed(0)
    draft = Draft(config)
    draft.set_vocab(torch.zeros(raw["vocab_size"], dtype=torch.long), torch.ones(raw["vocab_size"], dtype=torch.bool))
    save_draft(tmp_path / "wide", draft.serving_state(), config, dtype=torch.float32)
    words = ("--draft-model-path", "wide", "--target-model-path", tiny, "--export-dtype", "float32")
    ran = run_cli("export", *words, "--layout", "speculators")
    assert ran.code == 0, ran.err
    tensors = load_file(tmp_path / "runs" / "draft" / "model.safetensors")
    assert "layers.1.input_layernorm.weight" in tensors
    assert not {"layers.1.hidden_norm.weight", "d2t", "t2d"} & tensors.keys()
    layer = json.loads((tmp_path / "runs" / "draft" / "config.json").read_text())["transformer_layer_config"]
    assert (layer["num_aux_hidden_states"], layer["num_hidden_layers"]) == (5, 2)
    state = load_draft(tmp_path / "runs" / "draft")[1]
    assert all(torch.equal(value, state[name]) for name, value in draft.serving_state().items())


def test_speculators_needs_a_target_and_has_no_two_norms(run_cli: RunCli, run_folder: Path, tiny: Path) -> None:
    (run_folder / "settings.toml").unlink()
    ran = run_cli("export", "--layout", "speculators")
    assert (ran.code, ran.error == "missing-target-name" and "--target-model-path" in ran.err) == (1, True), ran.err
    config, _ = load_draft(run_folder / "best")
    both = Draft(replace(config, fc_norm=True, norm_before_fc=True))
    t2d = torch.zeros(config.vocab_size, dtype=torch.bool)
    t2d[100:200:2] = True
    both.set_vocab(t2d.nonzero()[:, 0] - torch.arange(50), t2d)
    save_draft(run_folder / "both", both.serving_state(), both.config)
    words = ("--draft-model-path", run_folder / "both", "--target-model-path", tiny)
    ran = run_cli("export", *words, "--layout", "speculators")
    assert (ran.code, ran.error == "unservable-draft") == (1, True), ran.err
