"""Training steps on the pretend GPU: the CPU's numbers, and no waiting that nobody asked for."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from eagle3cli.training.trainer import Trainer
from eagle3cli.training.ttt import unroll
from tests.gpu_tensor import PretendGpu
from tests.pretend_gpu import pretend_gpu
from tests.training.test_trainer import RandomSource, make_trainer

BUDGET = 2
"""Host syncs of a training step: for the gradient norm, and with the loss mix for the acceptance rates."""

Numbers = tuple[list[float], list[float], dict[str, torch.Tensor]]

WAYS: dict[str, dict[str, Any]] = {
    "kl": {"loss": "kl"},
    "tv": {"loss": "tv"},
    "lk": {"loss": "lk"},
    "mix": {"loss": "mix"},
    "muon": {"optimizer": "muon"} if hasattr(torch.optim, "Muon") else {},
    "recompute": {"activation_checkpointing": True},
    "micro batches": {"micro_batch_size": 2},
    "chunks": {"loss_chunk": 300},
    "chunks of mix": {"loss": "mix", "loss_chunk": 300},
    "anchors": {"anchor_fraction": 0.5},
    "specforge": {"alignment": "specforge"},
    "sdpa": {"attention_backend": "sdpa"},
}


def two_steps(trainer: Trainer) -> Numbers:
    """Losses and gradient norms of two steps, and the weights after them."""
    losses = []
    norms = []
    for _ in range(2):
        before = float(sum(trainer.metrics.losses))
        trainer.train_step()
        losses.append(float(sum(trainer.metrics.losses)) - before)
        norms.append(float(trainer.grad_norm))
    return losses, norms, {name: weight.detach().cpu() for name, weight in trainer.draft.named_parameters()}


@pytest.mark.slow
@pytest.mark.parametrize("live", [False, True], ids=["store", "live"])
@pytest.mark.parametrize("way", WAYS)
def test_a_step_gives_the_cpus_numbers(tmp_path: Path, gpu_kernel: None, way: str, live: bool) -> None:
    source = RandomSource(device="cuda", live=live)
    options = {"learning_rate": 1e-3, **WAYS[way]}
    on_cpu = two_steps(make_trainer(tmp_path, RandomSource(live=live), **options))
    with pretend_gpu():
        on_gpu = two_steps(make_trainer(tmp_path, source, device="cuda", **options))
    assert on_gpu[0] == pytest.approx(on_cpu[0], rel=1e-5)
    assert on_gpu[1] == pytest.approx(on_cpu[1], rel=1e-4)
    for name, weight in on_cpu[2].items():
        torch.testing.assert_close(on_gpu[2][name], weight, rtol=1e-4, atol=1e-5)


def syncs_of_a_step(folder: Path, gpu: PretendGpu, *, live: bool = False, **options: Any) -> Counter[str]:
    """Where the host waits in a training step from its batch to its weights, and how often."""
    trainer = make_trainer(folder, RandomSource(device="cuda", live=live), device="cuda", **options)
    batches = {tuple(rows): trainer.batches.source.batch(rows) for (rows,) in trainer.batches.micro_batches(0)}
    trainer.batches.source.batch = lambda rows: batches[tuple(rows)]  # type: ignore[method-assign]
    gpu.reset()
    trainer.train_step()
    return gpu.syncs


def check_budget(syncs: Counter[str]) -> None:
    assert syncs.total() <= BUDGET, syncs


@pytest.mark.parametrize("live", [False, True], ids=["store", "live"])
@pytest.mark.parametrize("way", WAYS)
def test_a_step_waits_for_the_device_a_few_times_however_it_is_cut(
    tmp_path: Path, gpu: PretendGpu, way: str, live: bool
) -> None:
    check_budget(syncs_of_a_step(tmp_path, gpu, live=live, **WAYS[way]))


def test_a_value_that_a_step_reads_on_the_way_is_noticed(
    tmp_path: Path, gpu: PretendGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody looks at a number in every step of the unroll."""
    gather = unroll.gather

    def reads(*args: Any) -> Any:
        out = gather(*args)
        assert torch.isfinite(out).all()
        return out

    monkeypatch.setattr(unroll, "gather", reads)
    with pytest.raises(AssertionError, match="unroll.py"):
        check_budget(syncs_of_a_step(tmp_path, gpu))


@pytest.mark.parametrize("name", ["arange", "zeros"])
def test_a_tensor_that_somebody_makes_on_the_host_is_noticed(
    tmp_path: Path, gpu: PretendGpu, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Somebody forgets ``device=``."""
    make = getattr(torch, name)
    monkeypatch.setattr(torch, name, lambda *args, device=None, **options: make(*args, **options))
    with pytest.raises(RuntimeError, match="two devices|no CUDA kernel"):
        make_trainer(tmp_path, device="cuda").train_step()
