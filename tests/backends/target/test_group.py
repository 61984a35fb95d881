"""A target over two processes (torchrun, gloo) gives the states, and training the losses, of one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eagle3cli.backends.target.hf import load_target
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.models import TargetSettings
from tests.backends.target.rank_states import ROWS
from tests.conftest import ROOT, RunCli
from tests.families import family_target
from tests.tiny import SETTINGS, conversations

SPREAD = ("llama", "qwen2", "qwen3-moe", "mixtral", "gpt-oss", "deepseek-v3", "gemma3", "phi3", "glm4", "granite")


def torchrun(folder: Path, *words: str, processes: int = 2) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run(
        [*command, *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=580, check=False
    )


def losses(run: Path) -> list[float]:
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [event["loss"] for event in events if event["event"] == "step"]


@pytest.mark.slow
def test_states_of_two_ranks_are_those_of_one(tmp_path: Path) -> None:
    folders = [family_target(tmp_path / name, name) for name in SPREAD]
    script = Path(__file__).with_name("rank_states.py")
    done = torchrun(tmp_path, str(script), str(tmp_path / "out.safetensors"), *map(str, folders))
    assert done.returncode == 0, done.stderr[-3000:]
    found = load_file(tmp_path / "out.safetensors")
    for folder in folders:
        alone = load_target(TargetSettings(model_path=str(folder), device="cpu"), Silent()).capture(ROWS)
        for row, (aux, last) in enumerate(alone):
            torch.testing.assert_close(found[f"{folder.name}.{row}.aux"], aux, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(found[f"{folder.name}.{row}.last"], last, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_training_with_a_target_over_two_processes_gives_the_losses_of_one(tmp_path: Path, run_cli: RunCli) -> None:
    target = family_target(tmp_path / "target", "qwen3-moe")
    (tmp_path / "train.jsonl").write_text(conversations(10, 0))
    (tmp_path / "eval.jsonl").write_text(conversations(4, 100))
    (tmp_path / "eagle3.toml").write_text(SETTINGS.format(tiny=target))
    short = ("--total-steps", "4", "--log-interval", "1", "--draft-init", "random")
    assert run_cli("train", "--output-dir", "one", *short).code == 0
    done = torchrun(tmp_path, "-m", "eagle3cli", "train", "--tp-size", "2", "--output-dir", "two", *short, "--json")
    assert done.returncode == 0, done.stderr[-3000:]
    assert json.loads(done.stdout)["steps"] == 4  # one process speaks
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-5)


@pytest.mark.slow
def test_states_of_groups_are_those_of_one_process(tmp_path: Path, run_cli: RunCli, tiny: Path) -> None:
    """Two groups of two, each with a part of the shards."""
    (tmp_path / "train.jsonl").write_text(conversations(10, 0))
    (tmp_path / "eagle3.toml").write_text(SETTINGS.format(tiny=tiny).replace('eval_path = "eval.jsonl"\n', ""))
    words = ("hidden-states", "--tp-size", "2", "--gpus", "4", "--output-path", "states")
    ran = run_cli(*words, process=True)
    assert ran.code == 0, ran.err
    verified = run_cli("hidden-states", "verify", "states/train")
    assert (verified.code, "100.0% of the top tokens the same" in verified.out) == (0, True), verified.err


@pytest.mark.slow
def test_the_first_process_tells_what_is_wrong(tmp_path: Path, run_cli: RunCli, tiny: Path) -> None:
    ran = run_cli("train", "--target-model-path", tiny, "--tp-size", "2")
    assert (ran.code, "--gpus 2, or torchrun --nproc-per-node 2" in ran.err) == (2, True), ran.err
    (tmp_path / "train.jsonl").write_text(conversations(4, 0))
    words = ("-m", "eagle3cli", "train", "--target-model-path", str(tiny), "--train-data-path", "train.jsonl")
    wrong = torchrun(tmp_path, *words, "--tp-size", "2", "--aux-layers", "1", "3", "40")
    assert wrong.returncode != 0
    assert "has layers 0 to 7" in wrong.stderr
