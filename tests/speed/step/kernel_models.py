"""Stand-ins for the kernels that only a GPU runs: no numbers, but the bytes, the FLOP and the memory that they take."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn import functional

from eagle3cli.models import kernels as of_layers
from eagle3cli.training.ttt import flex_attention, fused_loss, kernels
from eagle3cli.training.ttt.kernels.plain_rows import ScoredRows, TeacherRows
from tests.gpu_tensor import numbers
from tests.speed.step.cost import Costs, size


@contextmanager
def modelled_kernels(costs: Costs) -> Iterator[None]:
    """Within the block the compiled flex_attention and the Triton kernels are counted in place of run."""
    rows = SimpleNamespace(lse_rows=Lse(costs), score_rows=Score(costs))
    norm = SimpleNamespace(rms_norm=TritonNorm(costs))
    own_keys = SimpleNamespace(merge_draft_kv=Merge(costs))
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(flex_attention, "_compiled", return_value=Flex(costs)))
        stack.enter_context(mock.patch.object(kernels, "triton_runs", return_value=True))
        stack.enter_context(mock.patch.object(kernels, "loss_rows", rows, create=True))
        stack.enter_context(mock.patch.object(kernels, "draft_kv", own_keys, create=True))
        stack.enter_context(mock.patch.object(of_layers, "triton_runs", return_value=True))
        stack.enter_context(mock.patch.object(of_layers, "rms_norm", norm, create=True))
        stack.enter_context(mock.patch.object(of_layers, "rotary", SimpleNamespace(rotate=Rotate(costs)), create=True))
        stack.enter_context(mock.patch.object(of_layers, "silu_gate", Gate(costs), create=True))
        stack.enter_context(mock.patch.object(functional, "rms_norm", RmsNorm(costs)))
        stack.enter_context(mock.patch.object(fused_loss, "_best_product", return_value=AddedProduct(costs)))
        yield


@dataclass(frozen=True)
class Flex:
    """The compiled flex_attention: blocks of keys that are read in part count as half."""

    costs: Costs

    def __call__(
        self, query: Tensor, keys: Tensor, values: Tensor, *, block_mask: Any, return_lse: bool = False, **_: Any
    ) -> Any:
        blocks = int(numbers(block_mask.kv_num_blocks).sum()) / 2
        if block_mask.full_kv_num_blocks is not None:
            blocks += int(numbers(block_mask.full_kv_num_blocks).sum())
        edge_q, edge_k = block_mask.BLOCK_SIZE
        out, lse = _Flex.apply(query, keys, values, int(blocks * edge_q * edge_k), self.costs)  # type: ignore[no-untyped-call]
        return (out, lse) if return_lse else (out, SimpleNamespace(lse=lse))


class _Flex(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, query: Tensor, keys: Tensor, values: Tensor, pairs: int, costs: Costs
    ) -> tuple[Tensor, Tensor]:
        out = torch.empty_like(query)
        lse = torch.empty_like(query[..., 0], dtype=torch.float32)
        ctx.save_for_backward(query, keys, values, out, lse)
        ctx.pairs = pairs
        ctx.costs = costs
        flop = 4 * pairs * query.shape[1] * query.shape[3]
        moved = 2 * (size(query) + size(keys))
        costs.add("flex forward", moved=moved, flop=flop, flops=costs.machine.flex_forward_flops)
        return out, lse

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, keys, values, _, lse = ctx.saved_tensors
        costs = ctx.costs
        delta = torch.empty_like(lse)
        flop = 10 * ctx.pairs * query.shape[1] * query.shape[3]
        moved = 4 * (size(query) + size(keys)) + size(delta)
        costs.add("flex backward", moved=moved, flop=flop, flops=costs.machine.flex_backward_flops)
        return torch.empty_like(query), torch.empty_like(keys), torch.empty_like(values), None, None


@dataclass(frozen=True)
class Merge:
    """``kernels.draft_kv.merge_draft_kv``."""

    costs: Costs

    def __call__(self, query: Tensor, out: Tensor, lse_RA: Tensor, draft_kv: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        merged, total_RA = _Merge.apply(self.costs, query, out, lse_RA, *draft_kv)  # type: ignore[no-untyped-call]
        return merged, total_RA


class _Merge(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, costs: Costs, query: Tensor, out: Tensor, lse: Tensor, *draft_kv: Tensor
    ) -> tuple[Tensor, Tensor]:
        query = query.contiguous()
        draft_kv = tuple(states.contiguous() for states in draft_kv)
        merged = torch.empty_like(query)
        total = torch.empty_like(lse, dtype=torch.float32)
        read = [query, out, lse, *draft_kv]
        costs.add("own keys forward", moved=sum(map(size, (*read, merged, total))))
        ctx.costs = costs
        ctx.save_for_backward(query, out, lse, merged, total, *draft_kv)
        ctx.mark_non_differentiable(total)
        return merged, total

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        query, out, lse, merged, total, *draft_kv = ctx.saved_tensors
        written = [torch.empty_like(x) for x in (query, out, lse, *draft_kv)]
        read = [grads[0], query, out, lse, merged, total, *draft_kv]
        ctx.costs.add("own keys backward", moved=sum(map(size, (*read, *written))))
        return (None, *written)


@dataclass(frozen=True)
class RmsNorm:
    """``F.rms_norm`` on CUDA, a kernel forward and two backward (torch 2.9 and newer): keeps its input alone."""

    costs: Costs

    def __call__(self, x: Tensor, shape: Sequence[int], weight: Tensor, eps: float) -> Tensor:
        del shape, eps
        normed: Tensor = _RmsNorm.apply(self.costs, x, weight)  # type: ignore[no-untyped-call]
        return normed


class _RmsNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, costs: Costs, x: Tensor, weight: Tensor) -> Tensor:
        ctx.costs = costs
        ctx.save_for_backward(x, weight, torch.empty_like(x[:, 0], dtype=torch.float32))
        normed = torch.empty_like(x)
        costs.add("rms_norm forward", moved=size(x) + size(normed))
        return normed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, _ = ctx.saved_tensors
        moved = size(x) + size(grads[0])
        ctx.costs.add("rms_norm backward", moved=moved + size(x))
        ctx.costs.add("rms_norm backward of the weight", moved=moved)
        return None, torch.empty_like(x), torch.empty_like(weight)


@dataclass(frozen=True)
class TritonNorm:
    """``kernels.rms_norm.rms_norm`` of low-precision states, a kernel forward and one backward."""

    costs: Costs

    def __call__(self, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        del eps
        normed: Tensor = _TritonNorm.apply(self.costs, x, weight)  # type: ignore[no-untyped-call]
        return normed


class _TritonNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, costs: Costs, x: Tensor, weight: Tensor) -> Tensor:
        ctx.costs = costs
        ctx.save_for_backward(x, weight, torch.empty_like(x[..., 0], dtype=torch.float32))
        normed = torch.empty_like(x)
        costs.add("norm forward", moved=size(x) + size(normed))
        return normed

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, _ = ctx.saved_tensors
        ctx.costs.add("norm backward", moved=2 * size(x) + size(grads[0]))
        return None, torch.empty_like(x), torch.empty_like(weight)


@dataclass(frozen=True)
class Rotate:
    """``kernels.rotary.rotate``; the tables are small."""

    costs: Costs

    def __call__(self, x_RAD: Tensor, cos_RD: Tensor, sin_RD: Tensor) -> Tensor:
        rotated: Tensor = _Rotate.apply(self.costs, x_RAD, cos_RD, sin_RD)  # type: ignore[no-untyped-call]
        return rotated


class _Rotate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, costs: Costs, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.costs = costs
        ctx.save_for_backward(cos, sin)
        costs.add("rotary forward", moved=2 * size(x))
        return torch.empty_like(x, memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        ctx.costs.add("rotary backward", moved=2 * size(grads[0]))
        return None, torch.empty_like(grads[0], memory_format=torch.contiguous_format), None, None


@dataclass(frozen=True)
class Gate:
    """``kernels.silu_gate``."""

    costs: Costs

    def silu_gate(self, gate: Tensor, up: Tensor) -> Tensor:
        out = torch.empty_like(gate)
        self.costs.add("gate forward", moved=size(gate) + size(up) + size(out))
        return out

    def silu_gate_backward(self, grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
        self.costs.add("gate backward", moved=size(grad) + 2 * size(gate) + 2 * size(up))
        return torch.empty_like(gate), torch.empty_like(up)


@dataclass(frozen=True)
class Lse:
    """``kernels.loss_rows.lse_rows``."""

    costs: Costs

    def __call__(self, logits_RV: Tensor) -> Tensor:
        self.costs.add("log-sum-exp of rows", moved=size(logits_RV))
        return torch.empty_like(logits_RV[:, 0], dtype=torch.float32)


@dataclass(frozen=True)
class Score:
    """``kernels.loss_rows.score_rows``: logits and teacher come from memory once and from the cache in each pass more.

    Passes over a row: its sums, its rate where that is asked for, its gradient.
    """

    costs: Costs

    def __call__(
        self, logits_LW: Tensor, teacher: TeacherRows, rows: ScoredRows, sums_4P: Tensor, *, training: bool
    ) -> None:
        del rows, sums_4P
        machine = self.costs.machine
        passes = 1 + (teacher.whole_lse_U is not None) + training
        from_memory = (2 + training) * size(logits_LW)
        from_cache = (2 * passes + training) * size(logits_LW)
        self.costs.add("score rows", moved=max(from_memory, from_cache * machine.memory / machine.cache))


@dataclass(frozen=True)
class AddedProduct:
    """``total += left @ right`` with an fp32 total, in one kernel."""

    costs: Costs

    def __call__(self, total: Tensor, left: Tensor, right: Tensor) -> None:
        flop = 2 * left.shape[0] * left.shape[1] * right.shape[1]
        self.costs.add("product onto fp32", moved=2 * size(total) + size(left) + size(right), flop=flop)
