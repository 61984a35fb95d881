"""Muon whose work ranks share."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from eagle3cli.runtime.distributed import SINGLE_PROCESS, Ranks
from eagle3cli.training.optim.muon import deal
from eagle3cli.training.optim.optimizer import Optimizer

SHAPES = {"fc.weight": (6, 4), "q.weight": (5, 5), "norm.weight": (6,), "up.weight": (3, 8), "lm_head.weight": (8, 6)}
WORLD = 3


class Together(Ranks):
    """Ranks that are threads."""

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Sums by a slot for each rank."""
        barrier, slots = self.group
        slots[self.rank] = [tensor.clone() for tensor in tensors]
        barrier.wait()
        for at, tensor in enumerate(tensors):
            tensor.copy_(torch.stack([slot[at] for slot in slots]).sum(0))
        barrier.wait()


def trained(ranks: Ranks) -> dict[str, Tensor]:
    """The state after three steps."""
    generator = torch.Generator().manual_seed(0)
    named = [(name, nn.Parameter(torch.randn(shape, generator=generator))) for name, shape in SHAPES.items()]
    optimizer = Optimizer(named, max_grad_norm=0.5, kind="muon", ranks=ranks)
    for _ in range(3):
        for _, weight in named:
            weight.grad = torch.randn(weight.shape, generator=generator)
        optimizer.step(1e-2)
    return optimizer.state()


@pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="this torch has no Muon")
def test_every_rank_ends_with_the_weights_and_moments_of_one_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    updates: list[Any] = []
    step = torch.optim.Muon.step

    def counted(muon: torch.optim.Muon) -> None:
        updates.extend(m for group in muon.param_groups for m in group["params"] if m.grad is not None)
        step(muon)

    alone = trained(SINGLE_PROCESS)
    monkeypatch.setattr(torch.optim.Muon, "step", counted)
    shared: tuple[Barrier, list[list[Tensor]]] = (Barrier(WORLD, timeout=60), [[]] * WORLD)
    with ThreadPoolExecutor(WORLD) as threads:
        states = list(threads.map(trained, [Together(rank, WORLD, group=shared) for rank in range(WORLD)]))
    assert len(updates) == 3 * 3, "each matrix by one rank"
    for state in states:
        assert state.keys() == alone.keys()
        for name, value in alone.items():
            assert torch.equal(value, state[name]), name


@given(st.lists(st.tuples(st.integers(1, 90), st.integers(1, 90)), max_size=12), st.integers(1, 5))
def test_no_rank_has_much_more_to_do_than_its_part(shapes: list[tuple[int, int]], world_size: int) -> None:
    owners = deal(shapes, world_size)
    assert owners == deal(shapes, world_size)
    assert set(owners) <= set(range(world_size))
    work = [min(shape) ** 2 * max(shape) for shape in shapes]
    loads = [sum(w for w, owner in zip(work, owners, strict=True) if owner == rank) for rank in range(world_size)]
    assert max(loads) <= sum(work) / world_size + max(work, default=0)
