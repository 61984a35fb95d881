"""eagle3 export knows the target's class and the engines: what would be misread is converted or refused, and why."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from eagle3cli.backends.target.head import fingerprint
from eagle3cli.models.checkpoint import check_folder, load_draft, save_draft
from eagle3cli.models.config import DraftConfig
from eagle3cli.models.draft import Draft
from tests.conftest import Ran, RunCli


def write_target(folder: Path, name: str, **more: Any) -> dict[str, Any]:
    """The config of a target of this class; export reads nothing else of it."""
    sizes = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 8, "vocab_size": 320}
    raw = {
        "model_type": "llama",
        "architectures": [name],
        "intermediate_size": 96,
        "max_position_embeddings": 512,
        **sizes,
        **more,
    }
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(raw))
    return raw


def write_draft(folder: Path, raw: dict[str, Any], **more: Any) -> DraftConfig:
    """A random draft for this target, as training writes it."""
    torch.manual_seed(0)
    config = replace(DraftConfig.from_target(raw, draft_vocab_size=50), **more)
    draft = Draft(config)
    for name, weight in draft.named_parameters():
        if "norm" in name:
            weight.data.add_(torch.randn_like(weight) * 0.2)
    t2d = torch.zeros(320, dtype=torch.bool)
    t2d[100:200:2] = True
    draft.set_vocab(t2d.nonzero()[:, 0] - torch.arange(50), t2d)
    save_draft(folder, draft.serving_state(), config, dtype=torch.float32)
    return config


WORDS = ("--draft-model-path", "trained", "--target-model-path", "target", "--output-path", "out", "--overwrite")


def export(run_cli: RunCli, *words: str) -> Ran:
    return run_cli("export", *WORDS, "--export-dtype", "float32", "--json", *words)


@pytest.mark.parametrize("fc_norm", [False, True])
def test_one_auxiliary_layer_gets_another_with_zeros(run_cli: RunCli, tmp_path: Path, fc_norm: bool) -> None:
    raw = write_target(tmp_path / "target", "LlamaForCausalLM")
    config = write_draft(tmp_path / "trained", raw, aux_layers=(3,), fc_norm=fc_norm)
    ran = export(run_cli)
    assert ran.code == 0, ran.err
    assert "auxiliary layers [2] were added with zeros in fc, which SGLang skips otherwise" in ran.err
    assert (ran.json["aux_layers"], ran.json["served_by"]) == ([2, 3], ["sglang", "vllm"])
    wide, state = load_draft(tmp_path / "out")
    assert wide == replace(config, aux_layers=(2, 3), dtype="float32")
    check_folder(tmp_path / "out", target=raw)
    narrow_draft, wide_draft = Draft(config), Draft(wide)
    narrow_draft.load_state_dict(load_draft(tmp_path / "trained")[1])
    wide_draft.load_state_dict(state)
    aux_SC = torch.randn(20, 64)
    both = torch.cat([torch.randn(20, 64) * 100, aux_SC], 1)
    torch.testing.assert_close(wide_draft.first_hidden(both), narrow_draft.first_hidden(aux_SC))
    assert export(run_cli, "--layout", "vllm").json["aux_layers"] == [3]
    again = run_cli("export", "--draft-model-path", "out", "--target-model-path", "target", "--output-path", "x")
    assert again.code == 0, again.err


def test_a_norm_over_all_states_cannot_be_widened(run_cli: RunCli, tmp_path: Path) -> None:
    raw = write_target(tmp_path / "target", "LlamaForCausalLM")
    write_draft(tmp_path / "trained", raw, aux_layers=(3,), norm_before_fc=True)
    ran = export(run_cli)
    assert ran.code == 1
    assert ran.error == "unservable-draft"
    assert "--layout" in ran.err
    assert export(run_cli, "--layout", "vllm").json["served_by"] == ["vllm"]


def test_the_last_layer_is_for_those_that_deliver_it(run_cli: RunCli, tmp_path: Path) -> None:
    raw = write_target(tmp_path / "target", "Qwen3ForCausalLM")
    write_draft(tmp_path / "trained", raw, aux_layers=(1, 4, 7), norm_output=False)
    for layout in ("sglang", "legacy"):
        ran = export(run_cli, "--layout", layout)
        assert ran.code == 1
        assert ran.error == "unservable-draft"
        assert "7" in ran.err
        assert "Qwen3ForCausalLM" in ran.err
        assert "--layout" in ran.err
    ran = export(run_cli, "--layout", "vllm")
    assert (ran.code, ran.json["served_by"]) == (0, ["vllm"]), ran.err
    write_target(tmp_path / "target", "GptOssForCausalLM")
    assert export(run_cli).json["served_by"] == ["sglang", "vllm"]


@pytest.mark.parametrize(
    ("layers", "numbers"),
    [((2, 4, 5), [3, 5, 6]), ((0, 3, 5), [4, 1, 6]), ((0, 1, 4), [1, 0, 4]), ((1, 3, 4), [1, 3, 4])],
)
@pytest.mark.parametrize("name", ["DeepseekV2ForCausalLM", "Glm4MoeLiteForCausalLM", "KimiK25ForConditionalGeneration"])
def test_layers_are_counted_as_sglangs_class_counts_them(
    run_cli: RunCli, tmp_path: Path, name: str, layers: tuple[int, ...], numbers: list[int]
) -> None:
    raw = write_target(tmp_path / "target", name)
    write_draft(tmp_path / "trained", raw, aux_layers=layers)
    for layout in ("sglang", "vllm"):
        ran = export(run_cli, "--layout", layout)
        assert ran.code == 0, ran.err
        written = json.loads((tmp_path / "out" / "config.json").read_text())
        assert written["eagle_config"]["eagle_aux_hidden_state_layer_ids"] == numbers
        assert written["eagle_aux_hidden_state_layer_ids"] == [layer + 1 for layer in layers]
        assert load_draft(tmp_path / "out")[0].aux_layers == layers
        assert ("counts the layers whose inputs are read" in ran.err) == (layers == (2, 4, 5) or layers == (0, 3, 5))
        check_folder(tmp_path / "out", target=raw)
    assert ran.json["needs"]["sglang"] == ("0.5.12" if 1 in layers else "0.5.13")
    again = run_cli(
        "export", "--draft-model-path", "out", "--target-model-path", "target", "--output-path", "x", "--json"
    )
    assert again.json["aux_layers"] == list(layers)


def test_lines_are_of_the_layout_and_of_engines_that_know_the_class(run_cli: RunCli, tmp_path: Path) -> None:
    raw = write_target(tmp_path / "target", "MixtralForCausalLM")
    write_draft(tmp_path / "trained", raw)
    ran = run_cli("export", *WORDS)
    assert ran.code == 0, ran.err
    assert "sglang.launch_server" not in ran.out
    assert "not by SGLang: SGLang 0.5.23 has no auxiliary states of MixtralForCausalLM" in ran.out
    assert re.search(r"vllm serve .* --model-impl transformers", ran.out)
    write_target(tmp_path / "target", "MambaForCausalLM")
    ran = run_cli("export", *WORDS)
    assert ran.code == 0, ran.err
    assert "no server that is known runs it" in ran.out
    assert "No server that is known runs it." in (tmp_path / "out" / "README.md").read_text()
    ran = export(run_cli)
    assert (ran.json["serve"], ran.json["serve_lines"]) == (None, {})
    write_target(tmp_path / "target", "LlamaForCausalLM")
    ran = run_cli("export", *WORDS, "--layout", "vllm")
    assert "sglang" not in ran.out.lower().replace("not by sglang", "")


def test_lines_and_card_say_type_versions_and_target(run_cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    place = tmp_path / "my models"
    place.mkdir()
    (place / "target").symlink_to(tiny)
    write_draft(tmp_path / "trained", json.loads((tiny / "config.json").read_text()))
    words = ("--draft-model-path", "trained", "--target-model-path", "my models/target", "--output-path", "out")
    ran = run_cli("export", *words, "--json")
    assert ran.code == 0, ran.err
    words = shlex.split(ran.json["serve_lines"]["sglang"])
    assert words[words.index("--model-path") + 1] == "my models/target"
    assert words[words.index("--dtype") + 1] == "bfloat16"
    assert words[words.index("--speculative-draft-model-quantization") + 1] == "unquant"
    assert "--dtype bfloat16" in ran.json["serve_lines"]["vllm"]
    assert ran.json["needs"] == {"sglang": "0.5.12", "vllm": "0.22.0"}
    card = (tmp_path / "out" / "README.md").read_text()
    assert "needs SGLang 0.5.12 or vLLM 0.22.0 or newer; older ones pass over norm_output without a word" in card
    assert "target and draft run in one type, bfloat16" in card
    assert fingerprint(str(tiny)) in card
    assert "--model-path target --speculative-algorithm" in card
    assert load_file(tmp_path / "out" / "model.safetensors")["fc.weight"].dtype == torch.bfloat16


@pytest.mark.slow
def test_training_says_early_who_will_not_serve_the_draft(run_cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    from tests.tiny import conversations

    target = tmp_path / "target"
    target.mkdir()
    for file in tiny.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    (tmp_path / "train.jsonl").write_text(conversations(4, 0))
    (tmp_path / "own.json").write_text('{"own_embedding": true}')
    words = ("train", "--mode", "online", "--target-model-path", "target", "--train-data-path", "train.jsonl")
    more = ("--total-steps", "1", "--batch-size", "2", "--draft-vocab-size", "128", "--overwrite")
    ran = run_cli(*words, *more)
    assert ran.code == 0, ran.err
    assert "serve this draft" not in ran.err
    ran = run_cli(*words, *more, "--aux-layers", "1", "3", "7")
    assert ran.code == 0, ran.err
    assert "SGLang will not serve this draft: it reads layer 7, the target's last" in ran.err
    raw = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**raw, "architectures": ["SomeForCausalLM"]}))
    ran = run_cli(*words, *more)
    assert ran.code == 0, ran.err
    assert "no server that is known will run this draft: SGLang 0.5.23 has no auxiliary states of SomeFor" in ran.err


def test_a_draft_of_another_program_is_read_as_sglang_reads_it(run_cli: RunCli, tmp_path: Path) -> None:
    """Its list is for SGLang alone, whose DeepSeek classes take the layers whose inputs are read (Kimi's 2, 30, 58)."""
    raw = write_target(tmp_path / "target", "DeepseekV3ForCausalLM")
    write_draft(tmp_path / "trained", raw, aux_layers=(2, 4, 6))
    written = json.loads((tmp_path / "trained" / "config.json").read_text())
    del written["eagle_aux_hidden_state_layer_ids"]
    (tmp_path / "trained" / "config.json").write_text(json.dumps(written))
    words = ("--draft-model-path", "trained", "--target-model-path", "target", "--output-path", "out", "--overwrite")
    ran = run_cli("import", *words, "--json")
    assert ran.code == 0, ran.err
    assert ran.json["aux_layers"] == [1, 3, 5]
    assert "counts the layers whose inputs are read: the source's are the outputs of [1, 3, 5]" in ran.err
    written["eagle_config"]["eagle_aux_hidden_state_layer_ids"] = [1, 3, 5]
    (tmp_path / "trained" / "config.json").write_text(json.dumps(written))
    assert run_cli("import", *words, "--json").json["aux_layers"] == [1, 3, 5]
    write_target(tmp_path / "target", "LlamaForCausalLM")
    assert run_cli("import", *words, "--json").json["aux_layers"] == [1, 3, 5]


def test_a_window_is_told_to_the_engines_that_take_it(run_cli: RunCli, tmp_path: Path) -> None:
    """vLLM reads it in the config; SGLang by a flag that counts one key fewer; the others would attend to all."""
    raw = write_target(tmp_path / "target", "LlamaForCausalLM")
    config = write_draft(tmp_path / "trained", raw, window=128, norm_output=False, num_hidden_layers=2)
    ran = export(run_cli)
    assert ran.code == 0, ran.err
    assert "--speculative-draft-window-size 127" in ran.json["serve_lines"]["sglang"]
    assert ran.json["needs"]["sglang"] == "0.5.12"
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (written["layer_types"], written["sliding_window"]) == (["sliding_attention"] * 2, 128)
    assert load_draft(tmp_path / "out")[0] == replace(config, dtype="float32")
    assert "without --speculative-draft-window-size 127 it attends to all tokens" in run_cli("export", *WORDS).out
    speculators = export(run_cli, "--layout", "speculators")
    assert speculators.code == 0, speculators.err
    layer = json.loads((tmp_path / "out" / "config.json").read_text())["transformer_layer_config"]
    assert (layer["layer_types"], layer["sliding_window"]) == (["sliding_attention"] * 2, 128)
    assert load_draft(tmp_path / "out")[0].window == 128
    refused = export(run_cli, "--layout", "legacy")
    assert (refused.code, refused.error == "unservable-draft") == (1, True), refused.err


def test_sink_tokens_are_told_to_be_of_no_server(run_cli: RunCli, tmp_path: Path) -> None:
    raw = write_target(tmp_path / "target", "LlamaForCausalLM")
    config = write_draft(tmp_path / "trained", raw, window=128, sinks=4)
    refused = export(run_cli)
    assert (refused.code, refused.error == "unservable-draft" and "4" in refused.err) == (1, True), refused.err
    assert refused.error == "unservable-draft"
    assert "--layout" in refused.err
    assert "eagle3" in refused.err
    assert "--engine" in refused.err
    for layout in ("vllm", "speculators"):
        ran = export(run_cli, "--layout", layout)
        assert (ran.code, ran.json["served_by"]) == (0, []), ran.err
        assert "its 4 sink tokens, which vLLM does not show" in ran.json["refused_by"]["vllm"]
        assert load_draft(tmp_path / "out")[0].sliding == config.sliding


def test_a_window_of_one_token_is_none_to_sglang(run_cli: RunCli, tmp_path: Path) -> None:
    raw = write_target(tmp_path / "target", "LlamaForCausalLM")
    write_draft(tmp_path / "trained", raw, window=1)
    refused = export(run_cli)
    assert (refused.code, refused.error == "unservable-draft") == (1, True), refused.err
    assert export(run_cli, "--layout", "vllm").json["served_by"] == ["vllm"]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"layer_types": ["sliding_attention", "full_attention"], "num_hidden_layers": 2}, "layers of different kinds"),
        ({"layer_types": ["sliding_attention"]}, "a draft's window of 0 is no number of tokens"),
        ({"layer_types": ["sliding_attention"], "sliding_window": "wide"}, "a draft's window of 'wide'"),
        ({"layer_types": ["sliding_attention"], "sliding_window": 8, "draft_sinks": -1}, "a draft's sinks of -1"),
    ],
)
def test_what_is_no_window(run_cli: RunCli, tmp_path: Path, own: dict[str, Any], message: str) -> None:
    raw = write_target(tmp_path / "target", "LlamaForCausalLM")
    write_draft(tmp_path / "trained", raw)
    path = tmp_path / "trained" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | own))
    refused = export(run_cli)
    assert (refused.code, message in refused.err) == (1, True), refused.err


def test_a_window_without_layers_of_that_type_is_none(run_cli: RunCli, tmp_path: Path) -> None:
    """As copied from a target's config: no engine reads it, and so it is not read here."""
    raw = write_target(tmp_path / "target", "LlamaForCausalLM")
    write_draft(tmp_path / "trained", raw)
    path = tmp_path / "trained" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"sliding_window": 4096}))
    ran = export(run_cli)
    assert ran.code == 0, ran.err
    assert "window" not in ran.json["serve_lines"]["sglang"]
    assert "sliding_window" not in json.loads((tmp_path / "out" / "config.json").read_text())
