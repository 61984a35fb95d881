"""Soft cross-entropy between target and draft over the draft vocabulary, with no logits kept.

All depths' rows that share a teacher position are scored together, a chunk of positions at a time: the teacher's
probabilities are made once per position, and the loss, its gradient for the hidden rows and its gradient for the head
come out of the same pass. Memory holds one chunk of logits, whatever the number of depths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eagle3cli.training.rows import RowPlan

CHUNK_ELEMENTS = 4_000_000
"""Logits of one depth that exist at once (16 MB in fp32)."""


@dataclass(frozen=True)
class DepthSums:
    """Sums over the kept rows of every depth, ``[T]`` each; tensors, so that nobody waits for them."""

    loss_T: Tensor
    """Sum of the cross-entropies (nats)."""
    correct_T: Tensor
    """Rows whose most likely draft token is the answer."""


@dataclass(frozen=True)
class Teacher:
    """What teaches a batch."""

    last_NH: Tensor
    """Target's last hidden states by packed position."""
    answer_N: Tensor
    """Target token by packed teacher position that counts as right."""
    head_VdH: Tensor
    """The target's head, restricted to the draft vocabulary."""
    draft_ids_Vd: Tensor
    """Target token of every draft token."""


def depth_losses(
    normed: list[Tensor], head_weight_VdH: Tensor, teacher: Teacher, plan: RowPlan, depth_weights: list[float]
) -> tuple[Tensor, DepthSums]:
    """``sum_i w_i sum_rows CE(teacher, draft)`` (differentiable, not normalised) and the sums behind it."""
    found = _FusedHead.apply(head_weight_VdH, teacher, plan, depth_weights, *normed)  # type: ignore[no-untyped-call]
    total, loss_T, correct_T = found
    return total, DepthSums(loss_T, correct_T)


class _FusedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, head: Tensor, teacher: Teacher, plan: RowPlan, depth_weights: list[float], *normed: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        device, training = head.device, any(ctx.needs_input_grad)
        head_trains = ctx.needs_input_grad[0]
        loss_T = torch.zeros(len(normed), dtype=torch.float32, device=device)
        correct_T = torch.zeros(len(normed), dtype=torch.float32, device=device)
        d_head = torch.zeros_like(head, dtype=torch.float32) if head_trains else None
        d_normed = [torch.empty_like(rows) for rows in normed] if training else []
        positions = _teacher_positions(plan)
        for chunk_U in positions.split(max(1, CHUNK_ELEMENTS // len(head))):
            teach_UV = F.softmax(F.linear(teacher.last_NH[chunk_U].to(head.dtype), teacher.head_VdH).float(), -1)
            for depth, (rows, hidden) in enumerate(zip(plan.depths, normed, strict=True)):
                part = _part(rows.teacher_r, chunk_U)
                if part.start == part.stop:
                    continue
                at_r = torch.searchsorted(chunk_U, rows.teacher_r[part])
                teach_rV = teach_UV if len(at_r) == len(chunk_U) else teach_UV[at_r]
                logits_rV = F.linear(hidden[part], head).float()
                top_r, best_r = logits_rV.max(-1)
                answer_r = teacher.answer_N[rows.teacher_r[part]]
                correct_T[depth] += (teacher.draft_ids_Vd[best_r] == answer_r).sum()
                probability_rV = F.softmax(logits_rV, -1)
                # log-sum-exp of a row, from its largest logit and that logit's probability.
                lse_r = top_r - probability_rV.gather(1, best_r[:, None])[:, 0].log()
                loss_T[depth] += lse_r.sum() - torch.dot(teach_rV.flatten(), logits_rV.flatten())
                if training:
                    error_rV = probability_rV.sub_(teach_rV).to(head.dtype)
                    if d_head is not None:
                        _add_product(d_head, error_rV.T, hidden[part] * depth_weights[depth])
                    torch.mm(error_rV, head, out=d_normed[depth][part])
                    d_normed[depth][part] *= depth_weights[depth]
        ctx.save_for_backward(*d_normed, *([d_head] if d_head is not None else []))
        weights_T = torch.tensor(depth_weights, device=device)
        ctx.mark_non_differentiable(loss_T, correct_T)
        return (loss_T * weights_T).sum(), loss_T, correct_T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scale = grads[0]
        d_normed = list(ctx.saved_tensors)
        d_head = d_normed.pop() * scale if ctx.needs_input_grad[0] else None
        return (d_head, None, None, None, *(d * scale for d in d_normed))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """``total += left @ right`` with an fp32 total; low-precision factors keep their fast matrix product."""
    if left.dtype == total.dtype:
        total.addmm_(left, right)
    else:
        total += left @ right


def _teacher_positions(plan: RowPlan) -> Tensor:
    """All packed positions that teach some row, ascending."""
    positions: Tensor = torch.cat([rows.teacher_r for rows in plan.depths]).unique()
    return positions


def _part(teacher_r: Tensor, chunk_U: Tensor) -> slice:
    """The rows whose teacher lies in the chunk; teachers ascend within a depth."""
    low = int(torch.searchsorted(teacher_r, chunk_U[0]))
    high = int(torch.searchsorted(teacher_r, chunk_U[-1], right=True))
    return slice(low, high)


@torch.no_grad()
def best_tokens(normed: list[Tensor], head_weight_VdH: Tensor, draft_ids_Vd: Tensor) -> list[Tensor]:
    """The draft's most likely token for the kept rows of every depth, as target tokens, in chunks of rows."""
    found = []
    size = max(1, CHUNK_ELEMENTS // len(head_weight_VdH))
    for hidden in normed:
        parts = [F.linear(part, head_weight_VdH).argmax(-1) for part in hidden.split(size)]
        found.append(draft_ids_Vd[torch.cat(parts)])
    return found
