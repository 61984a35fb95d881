"""SGLang chosen by auto in data-parallel runs: each group of ranks has its own, and its own process group."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from eagle3cli.backends.target import sglang
from tests.backends.target.test_group import losses
from tests.conftest import ROOT, RunCli
from tests.families import family_target
from tests.tiny import SETTINGS, conversations

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).with_name("sglang_ranks.py")
STAND_IN = ROOT / "tests" / "engines" / "stand_in"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    target = family_target(tmp_path / "target", "llama")
    (tmp_path / "train.jsonl").write_text(conversations(10, 0))
    (tmp_path / "eval.jsonl").write_text(conversations(4, 100))
    (tmp_path / "eagle3.toml").write_text(SETTINGS.format(tiny=target))
    return tmp_path


def with_sglang(place: Path, processes: int, *words: str) -> str:
    """What a command says in so many processes that have the stand-in, on a machine that seems to have a GPU."""
    environment = {**os.environ, "PYTHONPATH": f"{STAND_IN}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    several = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes))
    done = subprocess.run(
        [sys.executable, *(several if processes > 1 else ()), str(SCRIPT), *words],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "target backend sglang: a GPU, SGLang 0.5.23 and a model type that it captures (llama)" in done.stderr
    return done.stderr


def test_each_group_of_a_training_run_has_its_own(place: Path, run_cli: RunCli) -> None:
    short = ("--total-steps", "4", "--log-interval", "1", "--draft-init", "random")
    assert run_cli("train", "--output-dir", "hf", *short).code == 0
    said = with_sglang(place, 4, "train", "--output-dir", "several", "--tp-size", "2", *short)
    assert "sglang of ranks [0, 1]" in said
    assert "sglang of ranks [2, 3]" in said
    assert losses(place / "several") == pytest.approx(losses(place / "hf"), rel=1e-5)


def test_capture_in_groups_gives_the_states_of_transformers(place: Path, run_cli: RunCli) -> None:
    with_sglang(place, 3, "hidden-states", "--output-path", "states")
    verified = run_cli("hidden-states", "verify", "states/train")
    assert (verified.code, "100.0% of the top tokens the same" in verified.out) == (0, True), verified.err


def test_the_stand_in_has_the_version_that_is_known() -> None:
    assert (STAND_IN / f"sglang-{sglang.VERSIONS[-1]}.dist-info").is_dir()
    assert not torch.distributed.is_initialized()
