"""train with draft configs of every kind, and training that goes on from a draft folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from eagle3cli.models.checkpoint import load_draft
from tests.conftest import RunCli

WIDE = {
    "num_hidden_layers": 2,
    "intermediate_size": 160,
    "own_embedding": True,
    "eagle_config": {"eagle_aux_hidden_state_layer_ids": [0, 2, 3, 5, 6]},
}


@pytest.mark.slow
def test_a_wide_draft_is_config_alone(run_cli: RunCli, place: Path) -> None:
    (place / "wide.json").write_text(json.dumps(WIDE))
    words = ("train", "--draft-model-config", "wide.json", "--set", "train.total_steps=3", "train.ttt_length=2")
    ran = run_cli(*words, "--json", cwd=place)
    assert ran.code == 0, ran.err
    best = place / "runs" / "train" / "best"
    config, state = load_draft(best)
    assert (config.num_hidden_layers, config.aux_layers, config.norm_output) == (2, (0, 2, 3, 5, 6), True)
    assert state["layers.1.mlp.up_proj.weight"].shape == (160, 64)
    assert float(state["layers.1.self_attn.o_proj.weight"].abs().max()) > 0  # it started as zeros
    measured = run_cli("eval", "--draft-model-path", best, "--depths", "2", "--json", cwd=place)
    assert measured.code == 0, measured.err
    bench = ("bench", "--draft-model-path", best, "--config-list", "2,2,1,3", "--benchmark-list", "mtbench:2")
    decoded = run_cli(*bench, "--max-tokens", "12", "--json", cwd=place)
    assert decoded.code == 0, decoded.err
    assert "differ from the baseline" not in decoded.err
    refused = run_cli("export", cwd=place)
    assert (refused.code, refused.error == "unservable-draft") == (1, True)
    assert run_cli("export", "--layout", "vllm", cwd=place).code == 0


@pytest.mark.slow
def test_a_window_from_training_to_the_lines_that_serve(run_cli: RunCli, place: Path) -> None:
    """The draft keeps it in its config, evaluations and the local decoder heed it, and another one is another run."""
    few = ("train", "--set", "train.total_steps=6", "train.ttt_length=3", "--learning-rate", "3e-3")
    ran = run_cli(*few, "--draft-window", "4", cwd=place)
    assert ran.code == 0, ran.err
    best = place / "runs" / "train" / "best"
    config, _ = load_draft(best)
    assert (config.window, config.sinks) == (4, 0)
    words = ("eval", "--draft-model-path", best, "--depths", "2", "--json")
    measured = run_cli(*words, cwd=place)
    assert measured.code == 0, measured.err
    assert list(measured.json["by_context_length"]) == ["0-511"]
    assert measured.json["context_steps"]["0-511"] == measured.json["steps"]
    drawn = [run_cli(*words, "--temperature", "1", *own, cwd=place) for own in ((), ("--draft-window", "64"))]
    narrow, wide = (ran.json["sampled"][0]["overlap_per_depth"] for ran in drawn)
    assert narrow != wide
    bench = ("bench", "--draft-model-path", best, "--config-list", "2,2,1,3", "--benchmark-list", "mtbench:2")
    decoded = run_cli(*bench, "--max-tokens", "12", "--json", cwd=place)
    assert decoded.code == 0, decoded.err
    assert "differ from the baseline" not in decoded.err
    exported = run_cli("export", "--json", cwd=place)
    assert "--speculative-draft-window-size 3" in exported.json["serve_lines"]["sglang"]
    again = run_cli(*few, "--draft-window", "8", cwd=place)
    assert (again.code, "draft.sliding_window" in again.err) == (2, True), again.err
    on = ("--draft-init", "draft", "--draft-model-path", best, "--output-dir", "runs/on", "--draft-window", "8")
    (place / "eagle3.toml").write_text((place / "eagle3.toml").read_text().replace("vocab_size = 200\n", ""))
    assert run_cli(*few, *on, "--draft-sinks", "2", cwd=place).code == 0
    config, _ = load_draft(place / "runs" / "on" / "best")
    assert (config.window, config.sinks) == (8, 2)


def test_what_is_no_window_ends_before_the_work(run_cli: RunCli, place: Path) -> None:
    for words, code, message in (
        (("--draft-window", "0"), 2, "--draft-window"),
        (("--draft-window", "8", "--draft-sinks", "-1"), 2, "--draft-sinks"),
        (("--draft-sinks", "4"), 1, "4 sink tokens without a window"),
        (("--draft-window", "8", "--serve-with", "llama.cpp"), 1, "attend to all of a text"),
        (("--draft-window", "8", "--draft-sinks", "4", "--serve-with", "sglang"), 1, "its 4 sink tokens, which SGLang"),
    ):
        refused = run_cli("train", *words, cwd=place)
        assert (refused.code, message in refused.err) == (code, True), refused.err
        assert not (place / "runs" / "train" / "checkpoints").exists()


@pytest.mark.slow
def test_training_goes_on_from_a_folder(run_cli: RunCli, place: Path) -> None:
    few = ("--set", "train.total_steps=4", "train.ttt_length=2")
    assert run_cli("train", *few, cwd=place).code == 0
    best = place / "runs" / "train" / "best"
    words = (
        "train",
        "--draft-init",
        "draft",
        "--draft-model-path",
        best,
        "--output-dir",
        "runs/on",
        "--no-norm-output",
    )
    plain = [word for word in words if word != "--no-norm-output"]
    clash = run_cli(*words, cwd=place)
    assert (clash.code, clash.error == "draft-config" and "norm_output" in clash.err) == (2, True), clash.err
    clash = run_cli(*plain, "--draft-vocab-size", 100, cwd=place)
    assert (
        clash.code,
        clash.error == "draft-config" and "draft_vocab_size" in clash.err and "200" in clash.err and "100" in clash.err,
    ) == (2, True), clash.err
    (place / "wide.json").write_text(json.dumps({"intermediate_size": 96}))
    clash = run_cli(*plain, "--draft-model-config", "wide.json", cwd=place)
    assert (clash.code, clash.error == "draft-config" and "96" in clash.err) == (2, True), clash.err
    ran = run_cli(*plain, *few, "--learning-rate", "1e-9", "--json", cwd=place)
    assert ran.code == 0, ran.err
    before, after = load_draft(best), load_draft(place / "runs" / "on" / "best")
    assert before[0] == after[0]
    for name, value in before[1].items():  # the same draft, moved by next to nothing
        assert torch.allclose(value.float(), after[1][name].float(), atol=1e-5), name
    missing = run_cli("train", "--draft-init", "draft", "--output-dir", "runs/none", cwd=place)
    assert (missing.code, "--draft-model-path" in missing.err) == (2, True)


@pytest.mark.slow
def test_a_draft_for_an_engine(run_cli: RunCli, place: Path) -> None:
    """Its name sets what it needs; what it cannot run is refused before the work, and export writes its layout."""
    few = ("train", "--set", "train.total_steps=2", "train.ttt_length=2", "--serve-with", "llama.cpp")
    for options, reason in (
        (("--norm-output",), "llama.cpp hands the state before the norm"),
        (("--aux-layers", "0", "1", "3", "5"), "4 auxiliary layers; llama.cpp reads exactly three"),
    ):
        refused = run_cli(*few, *options, cwd=place)
        assert (refused.code, reason in refused.err) == (1, True), refused.err
        assert not (place / "runs" / "train" / "best").exists()
    ran = run_cli(*few, cwd=place)
    assert ran.code == 0, ran.err
    config, _ = load_draft(place / "runs" / "train" / "best")
    assert (config.norm_output, config.fc_norm, len(config.aux_layers)) == (False, False, 3)
    exported = run_cli("export", "--json", cwd=place)
    assert exported.code == 0, exported.err
    assert (exported.json["layout"], list(exported.json["serve_lines"])) == ("gguf", ["llama.cpp"])
    folder = run_cli("export", "--layout", "sglang", "--output-path", "other", cwd=place)
    assert (folder.code, "it was trained for llama.cpp, which reads another layout" in folder.err) == (0, True)
    (place / "own.json").write_text('{"own_embedding": true}')
    own = run_cli(*few[:-1], "sglang", "--draft-model-config", "own.json", "--output-dir", "x", cwd=place)
    assert (own.code, own.error == "unservable-draft") == (1, True), own.err
