"""A target with a LoRA adapter on the command line: from prompts to a lossless benchmark, and never mixed with the
target without it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eagle3cli.data.hidden_states.store import Store
from tests.adapters import make_adapter
from tests.commands.train.runs import result_of
from tests.conftest import RunCli
from tests.pipeline.test_run import recipe, states
from tests.tiny import conversations, training_place

__all__ = ["recipe"]


@pytest.fixture
def adapter(tmp_path: Path, tiny: Path) -> Path:
    return make_adapter(tmp_path / "mine", tiny)


@pytest.mark.slow
def test_a_chain_with_an_adapter(run_cli: RunCli, recipe: Path, tmp_path: Path, tiny: Path, adapter: Path) -> None:
    words = ("run", recipe, "--target-adapter", adapter, "--set", "train.mode=offline", "--json")
    done = run_cli(*words)
    assert done.code == 0, done.err
    folder = tmp_path / "runs" / "tiny"
    assert json.loads((folder / "report.json").read_text())["lossless"] is True
    (target,) = (folder / "target").iterdir()
    assert target.name.startswith("llama+mine-")
    assert states(tmp_path)["target"]["result"] == {"target": f"runs/tiny/target/{target.name}"}
    assert Store(folder / "hidden_states" / "train").meta.target == f"runs/tiny/target/{target.name}"
    card = (folder / "draft" / "README.md").read_text()
    assert "| target is made of | llama and the LoRA adapter mine |" in card
    assert f"{target.name} is llama with the LoRA adapter mine merged into it: serve that folder" in card
    again = run_cli(*words)
    assert again.err.count("done earlier") == len(states(tmp_path))

    stores = ("--train-hidden-states-path", folder / "hidden_states" / "train")
    mixed = run_cli("train", "--mode", "offline", "--target-model-path", tiny, *stores, "--output-dir", "mixed")
    assert (mixed.code, "was captured from another target" in mixed.err) == (2, True), mixed.err
    evaluated = ("--draft-model-path", folder / "draft", "--eval-hidden-states-path", folder / "hidden_states" / "eval")
    mixed = run_cli("eval", "--target-model-path", tiny, *evaluated)
    assert (mixed.code, "was captured from another target" in mixed.err) == (2, True), mixed.err

    make_adapter(adapter, tiny, ("v_proj",))
    changed = run_cli(*words)
    assert (changed.code, "mine/adapter_model.safetensors was" in changed.err) == (2, True), changed.err


@pytest.mark.slow
def test_the_draft_of_the_target_without_it_goes_on_with_it(
    run_cli: RunCli, tmp_path: Path, tiny: Path, adapter: Path
) -> None:
    training_place(tmp_path, tiny)
    result_of(run_cli("train", "--output-dir", "base", "--json"))
    words = ("--draft-init", "draft", "--draft-model-path", "base/best", "--target-adapter", adapter)
    words += ("--set", "draft.vocab_size=none")
    result_of(run_cli("train", "--output-dir", "mine-draft", *words, "--json"))
    evaluated = run_cli("eval", "--draft-model-path", "mine-draft/best", "--target-adapter", adapter, "--json")
    assert (evaluated.code, "was trained for" in evaluated.err) == (0, False), evaluated.err
    bench = ("--config-list", "1,2,1,3", "--benchmark-list", "eval.jsonl:2", "--max-tokens", "8", "--engine", "local")
    measured = run_cli("bench", "--draft-model-path", "mine-draft/best", "--target-adapter", adapter, *bench, "--json")
    assert measured.code == 0, measured.err
    rows = [row for row in measured.json["configurations"] if row.get("compared")]
    assert rows
    assert all(row["identical"] == row["compared"] for row in rows)
    assert len(list((tmp_path / "cache" / "models").iterdir())) == 1, "merged once for all of them"
    export = ("export", "--draft-model-path", "mine-draft/best", "--output-path", "out")
    refused = run_cli(*export)  # eagle3.toml names the target without it
    assert (refused.code, "was trained for llama with the adapter mine" in refused.err) == (2, True), refused.err
    exported = run_cli(*export, "--target-adapter", adapter)
    assert exported.code == 0, exported.err
    assert "llama and the LoRA adapter mine" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "reason"), [("nowhere", "no such folder"), ("", "no adapter_config.json"), ("odd", "peft_type is IA3")]
)
def test_what_is_no_adapter_is_told_before_torch_is_loaded(
    run_cli: RunCli, tmp_path: Path, tiny: Path, name: str, reason: str
) -> None:
    make_adapter(tmp_path / "odd", tiny, peft_type="IA3")
    (tmp_path / "train.jsonl").write_text(conversations(4, 0))
    words = ("--target-model-path", tiny, "--train-data-path", "train.jsonl", "--target-adapter", tmp_path / name)
    for command in ("train", "hidden-states"):
        ran = run_cli(command, *words)
        assert (ran.code, reason in ran.err) == (1, True), ran.err


def test_a_plan_merges_nothing(run_cli: RunCli, tmp_path: Path, tiny: Path, adapter: Path) -> None:
    (tmp_path / "train.jsonl").write_text(conversations(4, 0))
    words = ("--target-model-path", tiny, "--train-data-path", "train.jsonl", "--target-adapter", adapter)
    ran = run_cli("train", *words, "--dry-run")
    assert ran.code == 0, ran.err
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_a_plan_knows_what_was_made_with_the_adapter(
    run_cli: RunCli, tmp_path: Path, tiny: Path, adapter: Path
) -> None:
    training_place(tmp_path, tiny)
    words = ("train", "--target-adapter", adapter)
    result_of(run_cli(*words, "--json"))
    planned = run_cli(*words, "--dry-run")
    assert planned.code == 0, planned.err
    without = run_cli("train", "--dry-run")
    assert (without.code, "target.model_path" in without.err) == (2, True), without.err
