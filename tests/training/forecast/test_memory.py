"""The forecast of memory: activations counted against what autograd keeps, and whole runs against real processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch

from eagle3cli.backends.capture.memory import TargetShape
from eagle3cli.models.config import DraftConfig
from eagle3cli.models.draft import Draft
from eagle3cli.models.layers.sizes import Latent
from eagle3cli.training.forecast.memory import depth_bytes, draft_weights, forecast, forward_parts
from eagle3cli.training.forecast.sizes import Workload
from eagle3cli.training.ttt.unroll import plan_positions, unroll
from tests.conftest import ROOT, RunCli
from tests.training.forecast.measured import Model, write_rows

CONFIG = DraftConfig(
    hidden_size=128,
    intermediate_size=352,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    vocab_size=1000,
    draft_vocab_size=500,
    target_hidden_size=128,
    aux_layers=(1, 2, 3),
    norm_output=True,
)
LATENT = replace(CONFIG, num_key_value_heads=4, head_dim=48, latent=Latent(64, 96, 32, 16, 32))
TARGET = TargetShape(weights=10**6, layers=8, hidden=128, intermediate=352, key_value=64, vocab=1000, tied=True)
WORK = Workload(
    draft=CONFIG, target=TARGET, online=True, tokens=512, sequences=2, longest_sequence=256, positions=400, ttt_steps=4
)


def kept_by_autograd(config: DraftConfig, dtype: torch.dtype, depths: int, lengths: list[int]) -> tuple[int, int]:
    """Bytes that an unroll leaves for its backward pass and for the head, and its rows at depth 0."""
    draft, size = Draft(config).cast(dtype), sum(lengths)
    mask = torch.cat([torch.arange(n) >= n // 4 for n in lengths])
    bounds = tuple(accumulate(lengths, initial=0))
    plan = plan_positions(mask, bounds, torch.ones(size, dtype=torch.bool), depths, "serving")
    embedding, aux = torch.randn(config.vocab_size, config.hidden_size).to(dtype), torch.randn(size, 384).to(dtype)
    weights = {weight.untyped_storage().data_ptr() for weight in (*draft.parameters(), embedding)}
    seen: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            seen[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        normed = unroll(draft, torch.randint(config.vocab_size, (size,)), aux, embedding, plan)
    for tensor in normed:
        keep(tensor)
    return sum(storage.nbytes() for storage in seen.values()), len(plan.steps[0].position_R)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("depths", [1, 2, 6])
def test_activations_are_those_that_autograd_keeps(dtype: torch.dtype, depths: int) -> None:
    kept, rows = kept_by_autograd(CONFIG, dtype, depths, [300, 200, 524])
    work = replace(
        WORK,
        tokens=1024,
        positions=rows,
        ttt_steps=depths,
        compute_bytes=dtype.itemsize,
        state_bytes=dtype.itemsize,
    )
    parts = forward_parts(work)
    foretold = parts["activations"] + parts["depth-0 keys and values"]
    foretold += parts["rows for the head and their gradients"] // 2
    assert kept == pytest.approx(foretold, rel=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_activations_of_latent_attention(dtype: torch.dtype) -> None:
    kept, rows = kept_by_autograd(LATENT, dtype, 3, [300, 212])
    sizes = {"compute_bytes": dtype.itemsize, "state_bytes": dtype.itemsize}
    parts = forward_parts(replace(WORK, draft=LATENT, tokens=512, positions=rows, ttt_steps=3, **sizes))
    foretold = parts["activations"] + parts["depth-0 keys and values"]
    foretold += parts["rows for the head and their gradients"] // 2
    assert kept == pytest.approx(foretold, rel=0.03)


def test_weights_are_counted_as_they_are() -> None:
    for config in (CONFIG, replace(CONFIG, num_hidden_layers=3, own_embedding=True), LATENT):
        assert draft_weights(config) == pytest.approx(sum(w.numel() for w in Draft(config).parameters()), rel=0.002)


def peak(**changes: Any) -> int:
    return forecast(
        replace(WORK, tokens=8192, positions=8000, cpu=False, compute_bytes=2, state_bytes=2, **changes)
    ).peak_bytes


def test_each_saving_saves() -> None:
    usual = peak()
    assert peak(recompute=True) < usual
    assert peak(online=False) < usual
    assert (
        forecast(replace(WORK, tokens=8192, positions=4000, cpu=False, compute_bytes=2, state_bytes=2)).peak_bytes
        < usual
    )
    big = replace(CONFIG, vocab_size=200_000, draft_vocab_size=200_000)
    assert peak(draft=big, world_size=4, shards=4) < peak(draft=big, world_size=4)
    assert peak(chunk=100_000) < usual


def test_a_depth_more_costs_what_its_rows_keep() -> None:
    more = forward_parts(replace(WORK, ttt_steps=5))["activations"] - forward_parts(WORK)["activations"]
    assert more == depth_bytes(WORK, 4)


LEAN = """
import os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stderr=subprocess.DEVNULL)
_, status, usage = os.wait4(process.pid, 0)
print(usage.ru_maxrss, file=sys.stderr)
sys.exit(os.waitstatus_to_exitcode(status))
"""
"""Runs a command and says the highest resident kB. Linux counts what the starting process held before the command took
its place: that of these tests may be large, this one's is not."""


def run(folder: Path, *words: object) -> tuple[Any, float]:
    """Result and highest resident bytes of a command in a process of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LEAN, sys.executable, "-m", "eagle3cli", *map(str, words), "--json"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return json.loads(done.stdout), int(done.stderr) * 1024


SETTINGS = {
    "many draft tokens": ["--draft-vocab-size", 50_000, "--batch-size", 1, "--ttt-length", 2],
    "many activations": ["--draft-vocab-size", 2_000, "--batch-size", 8, "--ttt-length", 7],
}


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="resident memory as Linux counts it")
@pytest.mark.parametrize("name", SETTINGS)
def test_a_real_run_takes_what_was_foretold(tmp_path: Path, name: str, run_cli: RunCli) -> None:
    Model(128, 4, 4, 2, 352, 60_000).write(tmp_path / "target")
    write_rows(tmp_path / "rows.jsonl", 8, 150, 0.8)
    words = ["--target-model-path", "target", "--train-data-path", "rows.jsonl", *SETTINGS[name][:2]]
    assert run_cli("cache", *words).code == 0
    words += ["--draft-init", "random", *SETTINGS[name][2:], "--total-steps", 1, "--threads", 1]
    before = sorted(tmp_path.rglob("*"))
    plan, _ = run(tmp_path, "train", *words, "--dry-run")
    assert sorted(tmp_path.rglob("*")) == before
    assert plan["rows_known"]
    done, measured = run(tmp_path, "train", *words)
    assert done["steps"] == plan["steps"] == 1
    assert 0.75 < plan["memory"]["peak_bytes"] / measured < 1.3
