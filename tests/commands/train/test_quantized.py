"""Targets in FP8, GPTQ and the like on the command line: from prompts to a lossless benchmark, or a reason why not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from tests.conftest import RunCli
from tests.pipeline.test_run import RECIPE
from tests.quantized import quantized_target, write_weights
from tests.tiny import conversations, tiny_target


def quick_recipe(place: Path, target: Path) -> Path:
    """A file for ``eagle3 run``, and its prompts."""
    rows = [{"id": f"p{i}", "conversations": [{"role": "user", "content": f"{i}: How?"}]} for i in range(24)]
    (place / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (place / "tiny.toml").write_text(RECIPE.format(tiny=target, mode="offline"))
    return place / "tiny.toml"


@pytest.mark.slow
def test_a_chain_of_a_quantised_target(run_cli: RunCli, tmp_path: Path) -> None:
    target, _ = quantized_target(tmp_path, "gptq")
    done = run_cli("run", quick_recipe(tmp_path, target), "--json")
    assert done.code == 0, done.err
    folder = tmp_path / "runs" / "tiny"
    assert json.loads((folder / "report.json").read_text())["lossless"] is True
    card = (folder / "draft" / "README.md").read_text()
    assert "| target's weights | GPTQ, 4 bits, groups of 32 |" in card
    assert "The draft itself is not quantised" in card
    draft = json.loads((folder / "draft" / "config.json").read_text())
    assert ("quantization_config" in draft, draft["torch_dtype"]) == (False, "bfloat16")


@pytest.mark.parametrize(
    ("quantization", "reason"),
    [
        ({"quant_method": "runes"}, "unknown way: runes"),
        ({"quant_method": "hqq"}, "pip install hqq"),
        ({"quant_method": "awq", "version": "gemv"}, "version is gemv"),
    ],
)
def test_what_cannot_be_read_is_told_before_the_work(
    run_cli: RunCli, tmp_path: Path, quantization: dict[str, Any], reason: str
) -> None:
    target = tiny_target(tmp_path / "target")
    write_weights(target, load_file(target / "model.safetensors"), quantization)
    (tmp_path / "train.jsonl").write_text(conversations(4, 0))
    ran = run_cli("hidden-states", "--target-model-path", target, "--train-data-path", "train.jsonl")
    assert (ran.code, reason in ran.err, "fix:" in ran.err) == (1, True, True), ran.err
    assert not (tmp_path / "cache").exists()
