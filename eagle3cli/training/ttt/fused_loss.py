"""The loss on a GPU: few large products, one kernel for the rows between them, and no wait for the device.

A chunk of teacher positions is scored for all steps of the unroll at once. The states of all its positions stand
together, ``[L, H]``: one product makes their logits, one kernel turns these into losses and, in place, into the
gradient with each row's weight in it, and two products carry that back to the states and to the head. The head is read
three times for a chunk, and its fp32 gradient read and written, so a chunk is thousands of positions large.

Which positions are in which chunk is decided in the host's memory; the indices go over in one copy. What is computed is
what ``loss.py`` says, and its CPU path is what the tests hold this to. The shape legend is in ``models/draft.py``;
P counts the positions with loss of all steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eagle3cli.runtime.devices import to_device
from eagle3cli.training.ttt import kernels
from eagle3cli.training.ttt.kernels import plain_rows
from eagle3cli.training.ttt.kernels.plain_rows import ScoredRows, TeacherRows
from eagle3cli.training.ttt.loss import CUDA_CHUNK_ELEMENTS, LossSums, LossWeights, Teacher
from eagle3cli.training.ttt.unroll import PositionPlan

AddProduct = Callable[[Tensor, Tensor, Tensor], None]
"""``total += left @ right``."""


@dataclass(frozen=True)
class Chunk:
    """Teacher positions that are scored together, and the rows that they teach."""

    position_U: Tensor
    rows: ScoredRows
    parts: tuple[slice, ...]
    """Of each step, its rows in this chunk."""


def fused_ttt_loss(
    normed: list[Tensor],
    head_weight_WH: Tensor,
    teacher: Teacher,
    plan: PositionPlan,
    weights: LossWeights,
    chunk: int | None = None,
) -> tuple[Tensor, LossSums]:
    """As :func:`eagle3cli.training.ttt.loss.ttt_loss`; ``chunk`` logits of all steps together exist at once."""
    assert teacher.whole_head is not None or not weights.need_rates, "acceptance rates need the whole head"
    chunk = chunk or CUDA_CHUNK_ELEMENTS
    total, *sums = _FusedLoss.apply(head_weight_WH, teacher, plan, weights, chunk, *normed)  # type: ignore[no-untyped-call]
    return total, LossSums(*sums)


class _FusedLoss(torch.autograd.Function):
    """As ``loss._FusedHead``: the gradients are made while the logits are there, and backward only scales them."""

    @staticmethod
    def forward(
        ctx: Any, head: Tensor, teacher: Teacher, plan: PositionPlan, weights: LossWeights, chunk: int, *normed: Tensor
    ) -> tuple[Tensor, ...]:
        training = any(ctx.needs_input_grad)
        counts = [len(states_LH) for states_LH in normed]
        # One column more: for the rows that do not count.
        sums_5P = torch.zeros(5, sum(counts) + 1, dtype=torch.float32, device=head.device)
        d_head = torch.zeros_like(head, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        d_normed = [torch.empty_like(states_LH) for states_LH in normed] if training else []
        weights_4T = _weights(weights, counts, head.device)
        at_once = positions_at_once(chunk, len(head), len(teacher.whole_head or ()), len(normed))
        for part in _chunks(plan, weights_4T[:3], at_once):
            if plan.taught_N is not None:
                part = _taught(part, plan.taught_N, sums_5P)
            _score_chunk(part, normed, head, teacher, sums_5P[:4], d_normed, d_head)
        sums_5T = torch.stack([part_5L.sum(1) for part_5L in sums_5P.split([*counts, 1], 1)[:-1]], 1)
        if plan.taught_N is None:
            sums_5T[4] = weights_4T[3, :-1]
        ctx.save_for_backward(*d_normed, *([d_head] if d_head is not None else []))
        ctx.head_dtype = head.dtype
        ctx.mark_non_differentiable(*sums_5T)
        return (_total(sums_5T, weights_4T, weights), *sums_5T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scale = grads[0]
        d_normed = list(ctx.saved_tensors)
        d_head = None
        if ctx.needs_input_grad[0]:
            wide = d_normed.pop()
            # Scaled and rounded in one pass, with no second fp32 matrix.
            d_head = torch.mul(wide, scale, out=torch.empty_like(wide, dtype=ctx.head_dtype))
        return (d_head, None, None, None, None, *(d * scale for d in d_normed))


def _taught(chunk: Chunk, taught_N: Tensor, sums_5P: Tensor) -> Chunk:
    """The chunk with rows whose teacher does not count moved to where they weigh nothing and nobody adds them up.

    Counts the others in the last row of the sums. The host does not know which they are, and need not.
    """
    rows = chunk.rows
    taught_L = taught_N[chunk.position_U][rows.at_L]
    step_L = torch.where(taught_L, rows.step_L, rows.weights_3T.shape[1] - 1)
    slot_L = torch.where(taught_L, rows.slot_L, sums_5P.shape[1] - 1)
    sums_5P[4].index_fill_(0, slot_L, 1.0)
    return replace(chunk, rows=replace(rows, step_L=step_L, slot_L=slot_L))


def _score_chunk(
    chunk: Chunk,
    normed: Sequence[Tensor],
    head: Tensor,
    teacher: Teacher,
    sums_4P: Tensor,
    d_normed: Sequence[Tensor],
    d_head: Tensor | None,
) -> None:
    """One chunk: its rows' sums into ``sums_4P``, its gradients into ``d_normed`` and onto ``d_head``."""
    training = bool(d_normed)
    states_LH = torch.cat([states_LH[part] for states_LH, part in zip(normed, chunk.parts, strict=True)])
    logits_LW = F.linear(states_LH, head)
    _row_kernels().score_rows(
        logits_LW, _teach(teacher, chunk.position_U, head.dtype), chunk.rows, sums_4P, training=training
    )
    if not training:
        return
    d_logits_LW = logits_LW
    if d_head is not None:
        add_product(d_head, d_logits_LW.T, states_LH)
    d_states_LH = torch.mm(d_logits_LW, head)
    sizes = [part.stop - part.start for part in chunk.parts]
    for d_step_LH, part, d_part_LH in zip(d_normed, chunk.parts, d_states_LH.split(sizes), strict=True):
        d_step_LH[part] = d_part_LH


def _teach(teacher: Teacher, position_U: Tensor, dtype: torch.dtype) -> TeacherRows:
    """The teacher's logits at these positions, each made once whatever the number of steps that it teaches."""
    last_UH = teacher.last_NH[position_U].to(dtype)
    logits_UW = teacher.head(last_UH)
    lse_rows = _row_kernels().lse_rows
    whole_lse_U = None if teacher.whole_head is None else lse_rows(teacher.whole_head(last_UH))
    return TeacherRows(logits_UW, lse_rows(logits_UW), whole_lse_U, teacher.answer_N[position_U], teacher.draft_ids_W)


def _row_kernels() -> ModuleType:
    """What scores rows: Triton's kernels, or the same in plain torch."""
    if not kernels.triton_runs():
        return plain_rows
    from eagle3cli.training.ttt.kernels import loss_rows

    return loss_rows


def positions_at_once(chunk: int, draft_vocab: int, whole_vocab: int, steps: int) -> int:
    """Teacher positions of a chunk: neither the draft's logits of all steps nor the teacher's are more than it.

    ``whole_vocab`` is 0 where the teacher's whole head is not read.
    """
    return max(1, chunk // max(draft_vocab * steps, whole_vocab))


def _weights(weights: LossWeights, counts: Sequence[int], device: torch.device) -> Tensor:
    """Weights of the three terms at every step, and under them how many positions carry loss there; ``[4, T + 1]``.

    At the last step, which is none, nothing weighs anything.
    """
    rows = (weights.cross_entropy_T, weights.total_variation_T, weights.log_rate_T, [float(c) for c in counts])
    return to_device(torch.tensor([[*row, 0.0] for row in rows], dtype=torch.float32), device)


def _chunks(plan: PositionPlan, weights_3T: Tensor, at_once: int) -> Iterator[Chunk]:
    """Cut the teacher positions into chunks of about equal size; everything is decided in the host's memory.

    Teachers ascend within a step, so that a step's rows in a chunk are a slice.
    """
    teacher_T = [step.teacher_L for step in (plan.host or plan).steps]
    position_U = torch.cat(teacher_T).unique()
    if not len(position_U):
        return
    number = -(-len(position_U) // at_once)
    begins = [len(position_U) * chunk // number for chunk in range(number)]
    firsts = position_U[begins]
    cuts_T = [[*torch.searchsorted(teacher_L, firsts).tolist(), len(teacher_L)] for teacher_L in teacher_T]
    index_T = [torch.searchsorted(position_U, teacher_L) for teacher_L in teacher_T]
    offsets = [0, *torch.tensor([len(teacher_L) for teacher_L in teacher_T]).cumsum(0).tolist()]
    parts_of = [tuple(slice(cuts[i], cuts[i + 1]) for cuts in cuts_T) for i in range(number)]
    indices = []
    for begin, parts in zip(begins, parts_of, strict=True):
        for step, (part, index_L) in enumerate(zip(parts, index_T, strict=True)):
            slot_L = torch.arange(offsets[step] + part.start, offsets[step] + part.stop)
            indices.append(torch.stack((index_L[part] - begin, torch.full_like(slot_L, step), slot_L)))
    # One copy for all chunks: position of every teacher, and of every row its teacher, its step and its slot.
    index_3P = torch.cat(indices, 1)
    together = to_device(torch.cat((position_U, index_3P.flatten())), weights_3T.device)
    sizes = [sum(part.stop - part.start for part in parts) for parts in parts_of]
    rows = together[len(position_U) :].view(3, -1).split(sizes, 1)
    ends = [*begins[1:], len(position_U)]
    for begin, end, parts, index_3L in zip(begins, ends, parts_of, rows, strict=True):
        at_L, step_L, slot_L = index_3L
        yield Chunk(together[begin:end], ScoredRows(at_L, step_L, slot_L, weights_3T), parts)


def _total(sums_5T: Tensor, weights_4T: Tensor, weights: LossWeights) -> Tensor:
    """The weighted sum of all terms; one whose weights are all zero is left out, infinite or not."""
    loss_T, _, rate_T, log_rate_T, with_loss_T = sums_5T
    terms = (
        (weights.cross_entropy_T, loss_T),
        (weights.total_variation_T, with_loss_T - rate_T),
        (weights.log_rate_T, -log_rate_T),
    )
    total = torch.zeros((), device=sums_5T.device)
    for row, (weight_T, sum_T) in enumerate(terms):
        if any(weight_T):
            total = total + (sum_T * weights_4T[row, :-1]).sum()
    return total


def add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right`` with an fp32 total; low-precision factors keep their fast matrix product."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        _best_product(total.device, left.dtype)(total, left, right)


@cache
def _best_product(device: torch.device, dtype: torch.dtype) -> AddProduct:
    """The fastest that this torch has on this device, found by trying.

    Torch 2.8 has products of low-precision factors that come out in fp32 on CUDA, but adds to no fp32 total in them.
    """
    total = torch.zeros(16, 16, device=device)
    factor = torch.zeros(16, 16, dtype=dtype, device=device)
    for product in (_added_inside, _summed_inside):
        try:
            product(total, factor, factor)
        except RuntimeError:  # not on this device, or not with these types
            continue
        return product
    return _rounded


def _added_inside(total: Tensor, left: Tensor, right: Tensor) -> None:
    torch.addmm(total, left, right, out_dtype=torch.float32, out=total)


def _summed_inside(total: Tensor, left: Tensor, right: Tensor) -> None:
    total += torch.mm(left, right, out_dtype=torch.float32)


def _rounded(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Each product is summed in fp32 and rounded once, before it is added."""
    total += left @ right
