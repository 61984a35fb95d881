"""SpecForge's step on the roofline: its own classes, with what it compiles counted as one kernel each.

That is more than Inductor reaches: a fused kernel here reads its inputs and writes its outputs once, and keeps nothing
but its inputs. Sequences go through one at a time, as its memory asks for; its update is taken to cost what ours does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from eagle3cli.training.optim.optimizer import Optimizer
from tests.pretend_gpu import pretend_gpu
from tests.speed.step.cost import CostMode, Costs, on_gpu, size
from tests.speed.step.kernel_models import Flex
from tests.speed.step.specforge_model import find, load, make_step
from tests.speed.step.step_case import Case

BLOCK = 128


def count_peer(case: Case) -> Costs:
    """What SpecForge's step costs for these sequences. Raises Missing where SpecForge is not here."""
    costs = Costs()
    with mock.patch.object(torch, "compile", compiler(costs)):
        specforge = load(find())
    with ExitStack() as stack:
        stack.enter_context(stand_ins(specforge, costs, case))
        stack.enter_context(pretend_gpu())
        stack.enter_context(CostMode(costs, FakeTensorMode(allow_non_fake_inputs=True)))
        for number, length in enumerate(case.lengths):
            with costs.in_phase("making"):
                step, draft = make_step(specforge, replace(case, lengths=(length,)), torch.device("cuda"))
                trained = [(name, weight) for name, weight in draft.named_parameters() if weight.requires_grad]
                optimizer = Optimizer(trained, max_grad_norm=0.5)
            with costs.in_phase("step"):
                step()
            if number == 0:
                with costs.in_phase("optimiser"):
                    optimizer.step(1e-4)
    return costs


def compiler(costs: Costs) -> Callable[..., Any]:
    """In place of ``torch.compile``: the function as one kernel."""

    def compile_(function: Callable[..., Any] | None = None, **_: Any) -> Any:
        if function is None:
            return lambda given: Fused(costs, given)
        return Fused(costs, function)

    return compile_


class Fused:
    """A compiled function: its inputs are read and its outputs written, in one kernel each way."""

    def __init__(self, costs: Costs, function: Callable[..., Any]) -> None:
        self.costs = costs
        self.function = function

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        """As a method."""
        return Fused(self.costs, self.function.__get__(instance, owner))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves, spec = tree_flatten((args, kwargs))
        owner = getattr(self.function, "__self__", None)
        weights = list(owner.parameters(recurse=False)) if isinstance(owner, torch.nn.Module) else []
        outer = SimpleNamespace(spec=None)
        outs = _Fused.apply(self, spec, outer, len(leaves), *leaves, *weights)  # type: ignore[no-untyped-call]
        return tree_unflatten(list(outs), outer.spec)


class _Fused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, fused: Fused, spec: Any, outer: Any, count: int, *inputs: Any) -> tuple[Any, ...]:
        costs = fused.costs
        costs.paused = True
        args, kwargs = tree_unflatten(list(inputs[:count]), spec)
        leaves, outer.spec = tree_flatten(fused.function(*args, **kwargs))
        costs.paused = False
        read = [x for x in inputs if isinstance(x, Tensor)]
        made = [x for x in leaves if isinstance(x, Tensor)]
        for x in filter(on_gpu, made):
            costs.track(x, "compiled")
        costs.add("compiled forward", moved=sum(map(size, (*read, *made))))
        ctx.fused = fused
        ctx.inputs = inputs
        return tuple(leaves)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        costs = ctx.fused.costs
        needed = ctx.needs_input_grad[4:]
        read = [x for x in (*ctx.inputs, *grads) if isinstance(x, Tensor)]
        made = [torch.empty_like(x) if want else None for x, want in zip(ctx.inputs, needed, strict=True)]
        costs.add("compiled backward", moved=sum(size(x) for x in (*read, *made) if x is not None))
        return None, None, None, None, *made


@contextmanager
def stand_ins(specforge: Any, costs: Costs, case: Case) -> Iterator[None]:
    """Its block masks, its attention and its Triton kernel by what they cost."""
    with ExitStack() as stack:
        draft = specforge.draft
        stack.enter_context(mock.patch.object(draft, "compile_friendly_create_block_mask", blocks_of))
        stack.enter_context(mock.patch.object(draft, "compile_friendly_flex_attention", Attention(costs)))
        stack.enter_context(mock.patch.object(specforge.model, "LogSoftmaxLoss", LossModel(costs, case.mask)))
        stack.enter_context(mock.patch.object(specforge.model, "_compute_target_p", TargetModel(costs, case)))
        yield


def blocks_of(mask_mod: Any, B: int, H: int, Q_LEN: int, KV_LEN: int, device: Any) -> Any:
    """Causal over the first keys, and of every later step the position's own: a diagonal of blocks."""
    del mask_mod, B, H, device
    edge = -(-Q_LEN // BLOCK)
    whole = torch.tensor(edge * (edge - 1) // 2)
    return SimpleNamespace(
        kv_num_blocks=torch.tensor(edge * (KV_LEN // Q_LEN)), full_kv_num_blocks=whole, BLOCK_SIZE=(BLOCK, BLOCK)
    )


@dataclass(frozen=True)
class Attention:
    """``compile_friendly_flex_attention``."""

    costs: Costs

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *, block_mask: Any, **_: Any) -> Tensor:
        out: Tensor = Flex(self.costs)(query, key, value, block_mask=block_mask, return_lse=True)[0]
        return out


@dataclass(frozen=True)
class TargetModel:
    """``_compute_target_p``, compiled: the teacher's logits are read, two fp32 tables of the draft's tokens written."""

    costs: Costs
    case: Case

    def __call__(self, target: Tensor, t2d: Tensor, loss_mask: Tensor) -> tuple[Tensor, ...]:
        del t2d
        shape = (*target.shape[:2], self.case.draft.draft_vocab_size)
        tables = [torch.empty(shape, dtype=torch.float32, device="cuda") for _ in range(2)]
        self.costs.add("compiled forward", moved=size(target) + 2 * size(tables[0]))
        tokens = torch.zeros(shape[:2], dtype=torch.long, device="cuda")
        return *tables, tokens, loss_mask


@dataclass(frozen=True)
class LossModel:
    """``LogSoftmaxLoss``, a Triton kernel each way: rows without loss are not read, but their gradient is written."""

    costs: Costs
    mask: float

    def apply(self, logits: Tensor, target: Tensor, position_mask: Tensor) -> Tensor:
        """Mean loss."""
        loss: Tensor = _Loss.apply(self, logits, target, position_mask)  # type: ignore[no-untyped-call]
        return loss


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, model: LossModel, logits: Tensor, target: Tensor, mask: Tensor) -> Tensor:
        ctx.model = model
        ctx.save_for_backward(logits, target, mask)
        model.costs.add("loss forward", moved=model.mask * (size(logits) + size(target)))
        return torch.empty_like(logits[0, 0, 0], dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        logits, target, _ = ctx.saved_tensors
        model = ctx.model
        model.costs.add("loss backward", moved=model.mask * (size(logits) + size(target)) + size(logits))
        return None, logits, None, None
