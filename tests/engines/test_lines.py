"""Every line that export prints or writes on the card runs on the real engine, with our own counts, or is not there."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eagle3cli.backends.target.hf import HfTarget, load_target
from eagle3cli.models.engines import Engine
from eagle3cli.models.inference import load_for_inference
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.models import TargetSettings
from tests.conftest import Ran, RunCli
from tests.engines.lines import assert_as_our_own, run_line
from tests.serving.engine_case import STEPS, make_draft, make_target, replies_of

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(900)]
FAMILIES = pytest.mark.families


def layers(*numbers: int) -> dict[str, Any]:
    return {"eagle_config": {"eagle_aux_hidden_state_layer_ids": list(numbers)}}


CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    # family, keys of the target's config, keys of the draft's JSON, layout
    "one auxiliary layer": ("llama", {}, {"fc_norm": True, **layers(3)}, "sglang"),
    "one auxiliary layer, for vLLM": ("llama", {}, layers(3), "vllm"),
    "the last layer, for vLLM": ("llama", {}, layers(1, 4, 7), "vllm"),
    "the last layer of GPT-OSS": ("gpt-oss", {}, layers(1, 4, 7), "sglang"),
    "auto on six layers": ("llama", {"num_hidden_layers": 6}, {}, "sglang"),
    "auto on three layers": ("llama", {"num_hidden_layers": 3}, {}, "sglang"),
    "a window of six tokens": ("llama", {}, {"sliding_window": 6}, "sglang"),
    "legacy": ("llama", {}, {"norm_output": False}, "legacy"),
    "one layer, legacy": ("llama", {}, {"norm_output": False, **layers(3)}, "legacy"),
    "DeepSeek from layer 2": ("deepseek-v2", {}, layers(2, 4, 5), "sglang"),
    "DeepSeek from layer 0": ("deepseek-v2", {}, layers(0, 3, 5), "sglang"),
    "DeepSeek from layers 0 and 1": ("deepseek-v2", {}, layers(0, 1, 4), "sglang"),
}
ONCE = ("one auxiliary layer", "a window of six tokens")
"""What runs without ``families``."""
RUNS = [
    pytest.param(engine, case, marks=() if case in ONCE else FAMILIES)
    for case, (_, _, _, layout) in CASES.items()
    for engine in (("vllm",) if layout == "vllm" else ("sglang", "vllm"))
]


def exported(case: str, run_cli: RunCli, folder: Path, *, dtype: str = "float32") -> tuple[Ran, Any]:
    """Train a draft of the case and export it to ``draft``; what the command said, and what we expect of an engine."""
    family, own, wanted, layout = CASES[case]
    raw = make_target(folder / "target", family, **own)
    expected = make_draft(folder / "trained", folder / "target", raw, **wanted)
    (folder / "steps.toml").write_text(f"[run]\nk = {STEPS}\n")
    words = ("--draft-model-path", "trained", "--target-model-path", "target", "--output-path", "draft")
    options = ("--layout", layout, "--export-dtype", dtype, "--config", "steps.toml", "--json")
    ran = run_cli("export", *words, *options)
    assert ran.code == 0, ran.err
    return ran, expected


@pytest.mark.parametrize(("engine", "case"), RUNS)
def test_a_line_counts_what_we_count(
    engine: Engine, case: str, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ran, expected = exported(case, run_cli, tmp_path)
    line = ran.json["serve_lines"][engine]
    assert f"    {line}\n" in (tmp_path / "draft" / "README.md").read_text()  # the card's is the same
    environment = {"VLLM_MLA_DISABLE": "1"} if case.startswith("DeepSeek") else {}
    answers, counted = run_line(engine, line, expected, tmp_path / "logs", **environment)
    assert_as_our_own(answers, counted, expected, STEPS)
    if "window" in case:  # which shows: the same weights without it are accepted another number of times
        draft = load_for_inference(tmp_path / "draft", json.loads((tmp_path / "target" / "config.json").read_text()))
        draft.config = replace(draft.config, window=None)
        target = load_target(TargetSettings(model_path="target", device="cpu"), Silent(), draft.config.aux_layers)
        assert replies_of(target, draft, expected.prompts).steps != expected.steps


@pytest.mark.parametrize("engine", ["sglang", "vllm"])
def test_a_line_of_the_default_type_starts(
    engine: Engine, run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A float32 target and a bfloat16 draft: without --dtype the target runs in float16, and SGLang's draft dies."""
    monkeypatch.chdir(tmp_path)
    ran, expected = exported("legacy", run_cli, tmp_path, dtype="bfloat16")
    _, counted = run_line(engine, ran.json["serve_lines"][engine], expected, tmp_path / "logs")
    assert counted.passes < sum(len(reply) - 1 for reply in expected.replies)  # some proposals were accepted


@FAMILIES
def test_a_gemma_draft_on_sglangs_own_sums(run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """SGLang hands on a layer's last sum alone of Gemma 3: what was trained on it is served."""

    def last_sums(target: HfTarget) -> HfTarget:
        return replace(target, layers=[layer.post_feedforward_layernorm for layer in target.layers])

    monkeypatch.chdir(tmp_path)
    raw = make_target(tmp_path / "target", "gemma3")
    expected = make_draft(tmp_path / "trained", tmp_path / "target", raw, adapt=last_sums, updates=5)
    (tmp_path / "steps.toml").write_text(f"[run]\nk = {STEPS}\n")
    words = ("--draft-model-path", "trained", "--target-model-path", "target", "--output-path", "draft", "--overwrite")
    options = ("--export-dtype", "float32", "--config", "steps.toml", "--json")
    assert "sglang" not in run_cli("export", *words, *options).json["serve_lines"]
    (tmp_path / "trained" / "settings.toml").write_text('[target]\nbackend = "sglang"\n')  # what its run says
    line = run_cli("export", *words, *options).json["serve_lines"]["sglang"]
    answers, counted = run_line("sglang", line, expected, tmp_path / "logs")
    assert_as_our_own(answers, counted, expected, STEPS)


@FAMILIES
def test_sglang_skips_fc_for_one_layer_and_reads_one_layer_low(run_cli: RunCli, tmp_path: Path) -> None:
    """What export converts is misread indeed, without a word: the same drafts as they were written before."""
    for case, family in (("one auxiliary layer", "llama"), ("DeepSeek from layer 2", "deepseek-v2")):
        folder = tmp_path / family
        folder.mkdir()
        raw = make_target(folder / "target", family)
        wanted = {key: value for key, value in CASES[case][2].items() if key != "fc_norm"}
        expected = make_draft(folder / "draft", folder / "target", raw, **wanted)
        words = f"--speculative-num-steps {STEPS} --speculative-eagle-topk 1 --speculative-num-draft-tokens {STEPS + 1}"
        draft = f"--speculative-algorithm EAGLE3 --speculative-draft-model-path {folder / 'draft'}"
        line = f"python -m sglang.launch_server --model-path {folder / 'target'} {draft} {words} --dtype float32"
        answers, counted = run_line("sglang", line, expected, folder / "logs")
        assert [list(answer.token_ids or ()) for answer in answers] == expected.replies
        assert counted.passes > sum(expected.steps)
