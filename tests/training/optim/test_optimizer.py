"""Masters, clipping, Muon, and state that goes on where it stopped."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from eagle3cli.training.optim.optimizer import Kind, Optimizer

NEEDS_MUON = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
SHAPES = {"fc.weight": (6, 4), "norm.weight": (6,), "lm_head.weight": (8, 6)}


def weights(dtype: torch.dtype = torch.float32) -> list[tuple[str, nn.Parameter]]:
    torch.manual_seed(0)
    return [(name, nn.Parameter(torch.randn(shape).to(dtype))) for name, shape in SHAPES.items()]


def steps(optimizer: Optimizer, first: int, last: int) -> list[float]:
    norms = []
    for step in range(first, last):
        generator = torch.Generator().manual_seed(step)
        for weight in optimizer.weights:
            weight.grad = torch.randn(weight.shape, generator=generator).to(weight.dtype)
        norms.append(float(optimizer.step(1e-2, divide_by=2.0)))
    return norms


@pytest.mark.parametrize("kind", ["adamw", pytest.param("muon", marks=NEEDS_MUON)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_goes_on_from_its_state(kind: Kind, dtype: torch.dtype) -> None:
    whole, cut, resumed = (Optimizer(weights(dtype), max_grad_norm=0.5, kind=kind) for _ in range(3))
    steps(whole, 0, 6)
    steps(cut, 0, 3)
    for name, value in resumed.state().items():
        value.detach().copy_(cut.state()[name])
    resumed.sync_weights()
    steps(resumed, 3, 6)
    for name, value in whole.state().items():
        assert torch.equal(value, resumed.state()[name]), name
    for a, b in zip(whole.weights, resumed.weights, strict=True):
        assert a.dtype == dtype
        assert torch.equal(a, b)


def test_equals_torch_adamw_with_clipping() -> None:
    ours, theirs = weights(), [weight for _, weight in weights()]
    optimizer = Optimizer(ours, max_grad_norm=0.5)
    reference = torch.optim.AdamW(theirs, lr=1e-2, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    for step in range(3):
        generator = torch.Generator().manual_seed(step)
        for (_, mine), other in zip(ours, theirs, strict=True):
            mine.grad = torch.randn(other.shape, generator=generator)
            other.grad = mine.grad / 2
        want = nn.utils.clip_grad_norm_(theirs, 0.5)
        reference.step()
        torch.testing.assert_close(optimizer.step(1e-2, divide_by=2.0), want)
    for (_, mine), other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


@NEEDS_MUON
def test_muon_takes_the_matrices_but_the_head() -> None:
    optimizer = Optimizer(weights(), max_grad_norm=0.5, kind="muon")
    steps(optimizer, 0, 1)
    assert {name for name in optimizer.state() if name.startswith("momentum_buffer")} == {"momentum_buffer.fc.weight"}
    assert {"exp_avg.norm.weight", "exp_avg.lm_head.weight"} <= optimizer.state().keys()


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(bad: float) -> None:
    optimizer = Optimizer(weights(), max_grad_norm=0.5)
    steps(optimizer, 0, 1)
    before = {name: value.clone() for name, value in optimizer.state().items()}
    for weight in optimizer.weights:
        weight.grad = torch.full_like(weight, bad)
    assert not torch.isfinite(optimizer.step(1e-2))
    assert all(torch.equal(value, before[name]) for name, value in optimizer.state().items())
    assert all(weight.grad is None for weight in optimizer.weights)


def test_micro_batches_add_up_in_fp32() -> None:
    """A bfloat16 sum would lose 1e-3 beside 1."""
    weight = nn.Parameter(torch.zeros(4, dtype=torch.bfloat16))
    optimizer = Optimizer([("fc.weight", weight)], max_grad_norm=1e9)
    for value in (1.0, *(1e-3,) * 8):
        weight.grad = torch.full((4,), value, dtype=torch.bfloat16)
        optimizer.accumulate()
    assert weight.grad is None
    norm = optimizer.step(0.0)
    torch.testing.assert_close(norm, torch.tensor(2 * 1.008), rtol=1e-4, atol=0)
