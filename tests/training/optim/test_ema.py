"""The average of the weights against its formula, and that training goes on as if it were not there."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from eagle3cli.training.optim.ema import Ema
from eagle3cli.training.optim.optimizer import Optimizer


def path(steps: int) -> list[Tensor]:
    """Weights after each of so many steps."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(3, 2, generator=generator) for _ in range(steps)]


def average_of(values: list[Tensor], decay: float) -> Tensor:
    weight = torch.full((3, 2), 1e6)
    ema = Ema([weight], decay)
    for step, value in enumerate(values, start=1):
        weight.copy_(value)
        ema.update(step)
    return ema.averages[0]


@pytest.mark.parametrize("steps", [1, 3, 40])
def test_a_young_average_is_of_the_later_steps(steps: int) -> None:
    """Step t counts as the difference of the fourth powers of t and t - 1; the first weights do not count."""
    values = path(steps)
    shares = [(t / steps) ** 4 - ((t - 1) / steps) ** 4 for t in range(1, steps + 1)]
    expected = torch.stack([share * value for share, value in zip(shares, values, strict=True)]).sum(0)
    torch.testing.assert_close(average_of(values, 0.9999), expected)


def test_an_old_one_decays() -> None:
    values = path(60)
    begun = average_of(values[:30], 0.8)
    for value in values[30:]:
        begun = 0.8 * begun + 0.2 * value
    torch.testing.assert_close(average_of(values, 0.8), begun)


def trained(ema_decay: float | None, dtype: torch.dtype) -> Optimizer:
    weight = nn.Parameter(torch.ones(4, 3, dtype=dtype))
    optimizer = Optimizer([("fc.weight", weight)], max_grad_norm=1e9, ema_decay=ema_decay)
    for step, value in enumerate(path(5), start=1):
        weight.grad = value.flatten()[:3].expand(4, 3).to(dtype).clone()
        optimizer.step(1e-1)
        optimizer.average(step)
    return optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_stands_in_for_the_weights_within_a_block(dtype: torch.dtype) -> None:
    with_average = trained(0.5, dtype)
    without = trained(None, dtype)
    (weight,) = with_average.weights
    before = {name: value.clone() for name, value in with_average.state().items()}
    with with_average.averaged():
        assert not torch.equal(weight, without.weights[0])
        assert torch.equal(weight, before["ema.fc.weight"].to(dtype))
    assert torch.equal(weight, without.weights[0])
    assert all(torch.equal(value, before[name]) for name, value in with_average.state().items())
    with pytest.raises(RuntimeError), with_average.averaged():
        raise RuntimeError("an evaluation that fails")
    assert torch.equal(weight, without.weights[0])
    with without.averaged():
        assert torch.equal(weight, without.weights[0])
