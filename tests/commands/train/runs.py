"""Training runs of the tests: started as processes, waited for, and what they leave."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.conftest import ROOT, Ran

STATE = Path("resume", "shard-00001-model-00001-of-00001.safetensors")


def start(place: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "eagle3cli", "train", *words]
    return subprocess.Popen(
        command, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def last_state(run: Path) -> dict[str, bytes]:
    """Every bit of what the newest checkpoint would go on from."""
    newest = max((run / "checkpoints").iterdir(), key=lambda p: int(p.name.rsplit("_", 1)[1]))
    tensors: dict[str, torch.Tensor] = {}
    for path in (newest / "resume").glob("*.safetensors"):
        tensors |= load_file(path)
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}


def result_of(ran: Ran) -> dict[str, object]:
    assert ran.code == 0, ran.err
    found: dict[str, object] = ran.json
    return found
