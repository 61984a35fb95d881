"""The real SGLang, in one process with eagle3: its states are those of transformers, for capture and for training.

EAGLE3_ENGINE_SGLANG names the Python that has it (``make test-engines``).
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.backends.target.test_group import losses
from tests.conftest import ROOT, RunCli, SharedTarget
from tests.tiny import SETTINGS, conversations

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(600)]


def in_engine(folder: Path, *words: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run the engine's Python with eagle3 importable, by torchrun where there are several processes."""
    python = os.environ.get("EAGLE3_ENGINE_SGLANG")
    if not python:
        pytest.skip("EAGLE3_ENGINE_SGLANG is not set: make test-engines")
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    paths = f"{ROOT / 'tests' / 'engines'}{os.pathsep}{ROOT}"  # what the kernels' stand-in lacks comes first
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    command: Sequence[str] = (str(Path(python).absolute()), *(torchrun if processes > 1 else ()), *words)
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500, check=False
    )


@pytest.mark.parametrize(
    ("name", "dtype", "allowed"),
    [
        ("llama", "float32", 1e-5),
        ("qwen2", "float32", 1e-5),
        ("qwen3", "float32", 1e-5),
        ("qwen3-moe", "float32", 1e-5),
        ("glm4-moe", "float32", 1e-5),
        ("deepseek-v2", "float32", 1e-5),
        ("gpt-oss", "float32", 1e-3),  # its own tables of YaRN
        ("qwen3", "bfloat16", 0.05),
    ],
)
def test_states_are_those_of_transformers(
    tmp_path: Path, shared_target: SharedTarget, name: str, dtype: str, allowed: float
) -> None:
    folder = shared_target(name)
    done = in_engine(tmp_path, str(Path(__file__).with_name("sglang_states.py")), str(folder), dtype)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["dtype"] == f"torch.{dtype}"
    assert max(found["aux"], found["last"]) < allowed, found


def test_capture_and_training_through_sglang(tmp_path: Path, shared_target: SharedTarget, run_cli: RunCli) -> None:
    target = shared_target("llama")
    (tmp_path / "train.jsonl").write_text(conversations(10, 0))
    (tmp_path / "eval.jsonl").write_text(conversations(4, 100))
    (tmp_path / "eagle3.toml").write_text(SETTINGS.format(tiny=target))
    short = ("--total-steps", "4", "--log-interval", "1", "--draft-init", "random")
    assert run_cli("train", "--output-dir", "hf", *short).code == 0
    words = ("-m", "eagle3cli", "train", "--target-model-backend", "sglang", *short)
    for processes, name in ((1, "one"), (2, "two")):
        done = in_engine(tmp_path, *words, "--output-dir", name, "--tp-size", str(processes), processes=processes)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "backend sglang" in done.stderr
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "hf"), rel=1e-5)
    captured = in_engine(tmp_path, "-m", "eagle3cli", "hidden-states", "--backend", "sglang", "--output-path", "states")
    assert captured.returncode == 0, captured.stderr[-3000:]
    verified = run_cli("hidden-states", "verify", "states/train")
    assert (verified.code, "100.0% of the top tokens the same" in verified.out) == (0, True), verified.err


def test_sglang_on_ranks_of_its_own(tmp_path: Path, shared_target: SharedTarget, run_cli: RunCli) -> None:
    """Whole on one rank, which has no process group; over two; and two of it."""
    target = shared_target("llama")
    (tmp_path / "train.jsonl").write_text(conversations(10, 0))
    (tmp_path / "eval.jsonl").write_text(conversations(4, 100))
    (tmp_path / "eagle3.toml").write_text(SETTINGS.format(tiny=target))
    short = ("--total-steps", "4", "--log-interval", "1", "--draft-init", "random")
    assert run_cli("train", "--output-dir", "hf", *short).code == 0
    words = ("-m", "eagle3cli", "train", "--target-model-backend", "sglang", *short)
    for targets, tp_size in ((1, 1), (2, 2), (2, 1)):
        split = ("--target-gpus", str(targets), "--tp-size", str(tp_size), "--output-dir", f"{targets}-{tp_size}")
        done = in_engine(tmp_path, *words, *split, processes=targets + 1)
        assert done.returncode == 0, done.stderr[-3000:]
        assert "backend sglang" in done.stderr
        assert losses(tmp_path / f"{targets}-{tp_size}") == pytest.approx(losses(tmp_path / "hf"), rel=1e-5)


def test_what_sglang_cannot_capture_is_said(tmp_path: Path, shared_target: SharedTarget) -> None:
    folder = shared_target("glm4")
    (tmp_path / "train.jsonl").write_text(conversations(4, 0))
    words = ("-m", "eagle3cli", "train", "--backend", "sglang", "--target-model-path", str(folder))
    done = in_engine(tmp_path, *words, "--train-data-path", "train.jsonl")
    assert done.returncode == 1
    assert "SGLang cannot run it here" in done.stderr
    assert "--target-model-backend hf" in done.stderr
