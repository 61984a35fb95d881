"""How many graphs flex_attention is compiled to over a run: Dynamo's, on a CPU, with no kernel behind them."""

from __future__ import annotations

import importlib
import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch._dynamo.utils import counters
from torch.nn.attention import flex_attention as torch_flex

from eagle3cli.models.window import Window
from eagle3cli.training.ttt import flex_attention
from eagle3cli.training.ttt.attention import QueryPositions

MOST = 3
"""One made for the lengths of the first step, one for all lengths, one without gradients for evaluations."""


@pytest.fixture(autouse=True)
def compiled_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The compiled kernel on the CPU: Dynamo's part of it, and nothing computed."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    monkeypatch.setattr(torch_flex, "_validate_device", lambda *_: None)  # it refuses gradients on a CPU
    higher_order = importlib.import_module("torch._higher_order_ops.flex_attention")
    monkeypatch.setattr(higher_order, "math_attention", nothing_computed)
    monkeypatch.setattr(flex_attention, "_kernel_on", lambda device: flex_attention._compiled())
    torch._dynamo.reset()
    flex_attention._compiled.cache_clear()
    counters.clear()
    yield
    torch._dynamo.reset()
    flex_attention._compiled.cache_clear()


def nothing_computed(query: Tensor, *_: Any) -> tuple[Tensor, Tensor, Tensor]:
    """Output, log-sum-exp and largest scores in their shapes."""
    row = query.new_zeros(query.shape[:-1], dtype=torch.float32)
    return torch.zeros_like(query), row, row


def attend_once(
    lengths: list[int], share: float, *, training: bool, step: int = 0, window: Window | None = None
) -> None:
    """One call as a step of the unroll makes it: some positions of a packed batch ask, all are keys."""
    cu_seqlens = tuple(torch.tensor([0, *lengths]).cumsum(0).tolist())
    position_R = torch.arange(cu_seqlens[-1])[-max(1, int(share * cu_seqlens[-1])) :]
    with torch.set_grad_enabled(training):
        query = torch.zeros(len(position_R), 2, 8, requires_grad=training)
        key, value = (torch.zeros(cu_seqlens[-1], 1, 8, requires_grad=training) for _ in range(2))
        flex_attention.attend_flex(
            query, key, value, [], QueryPositions(position_R, cu_seqlens, step=step, window=window)
        )


def graphs_of_a_run(steps: int, window: Window | None = None) -> int:
    """Graphs after so many steps on batches of one to four sequences, tiny and long, evaluations in between."""
    draw = random.Random(0)
    for step in range(steps):
        lengths = [max(3, min(900, int(draw.lognormvariate(4.5, 1.3)))) for _ in range(draw.choice((1, 2, 4)))]
        special = {3: [4], 5: [128], 6: [256], 7: [100]}  # one block, whole blocks, less than one
        share = draw.choice((1.0, 0.5))
        attend_once(special.get(step, lengths), share, training=step % 10 != 9, step=step % 7, window=window)
    return int(counters["stats"]["unique_graphs"])


@pytest.mark.slow
def test_one_graph_serves_all_lengths() -> None:
    assert graphs_of_a_run(150) <= MOST


@pytest.mark.slow
def test_one_graph_serves_all_steps_of_a_window() -> None:
    assert graphs_of_a_run(60, Window(100, 4)) <= MOST


@pytest.mark.slow
def test_a_graph_for_each_length_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above is red without the padding."""
    monkeypatch.setattr(flex_attention, "_in_blocks", lambda length: length)
    assert graphs_of_a_run(10) > MOST


@pytest.mark.slow
def test_past_the_limit_a_run_ends_and_does_not_make_scores_in_full(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flex_attention, "MAX_GRAPHS", 2)
    monkeypatch.setattr(flex_attention, "_in_blocks", lambda length: length)
    for _ in range(2):  # nor does it the next time
        with pytest.raises(FailOnRecompileLimitHit):
            graphs_of_a_run(10)
