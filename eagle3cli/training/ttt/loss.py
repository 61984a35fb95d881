"""Losses between target and draft over the draft vocabulary, with no logits kept.

All depths' rows that share a teacher position are scored together, a chunk of positions at a time: the teacher's
probabilities are made once per position, and the loss, its gradient for the hidden rows and its gradient for the head
come out of the same pass. Memory holds one chunk of logits, whatever the number of depths.

Per row, with the draft's probabilities q, the teacher's p over the whole vocabulary and t = p restricted to the draft
vocabulary and normalised again, the loss is a weighted sum of three terms:

    cross-entropy      -sum_v t_v log q_v                       (forward KL up to a constant; the default)
    total variation    1 - rate,  rate = sum_v min(p_v, q_v)    (rate: the chance that a sampled token is accepted)
    log rate           -log rate                                (LK, "acceptance-based"; 0 for a row whose rate is 0)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eagle3cli.backends.target.logits import Head
from eagle3cli.training.ttt.positions import RowPlan

CHUNK_ELEMENTS = 4_000_000
"""Logits of one depth that exist at once, unless the settings say otherwise (16 MB in fp32)."""


@dataclass(frozen=True)
class TermWeights:
    """Weight of each term at each depth, for a sum over rows."""

    cross_entropy_T: list[float]
    total_variation_T: list[float]
    log_rate_T: list[float]

    @classmethod
    def of_cross_entropy(cls, depth_weights: list[float]) -> TermWeights:
        """Cross-entropy alone."""
        zeros = [0.0] * len(depth_weights)
        return cls(depth_weights, zeros, zeros)

    @property
    def need_rates(self) -> bool:
        """Whether any term asks for acceptance rates."""
        return any(self.total_variation_T) or any(self.log_rate_T)


@dataclass(frozen=True)
class DepthSums:
    """Sums over the kept rows of every depth, ``[T]`` each; tensors, so that nobody waits for them."""

    loss_T: Tensor
    """Sum of the cross-entropies (nats)."""
    correct_T: Tensor
    """Rows whose most likely draft token is the answer."""
    rate_T: Tensor
    """Sum of the acceptance rates; zeros where the teacher has no whole head."""
    log_rate_T: Tensor
    """Sum of their logarithms."""


@dataclass(frozen=True)
class Teacher:
    """What teaches a batch."""

    last_NH: Tensor
    """Target's last hidden states by packed position."""
    answer_N: Tensor
    """Target token by packed teacher position that counts as right."""
    head: Head
    """The target's head, restricted to the draft vocabulary."""
    draft_ids_Vd: Tensor
    """Target token of every draft token."""
    whole_head: Head | None = None
    """The target's whole head, for acceptance rates."""


def depth_losses(
    normed: list[Tensor],
    head_weight_VdH: Tensor,
    teacher: Teacher,
    plan: RowPlan,
    weights: TermWeights,
    chunk: int = CHUNK_ELEMENTS,
) -> tuple[Tensor, DepthSums]:
    """The weighted sum of all terms over all kept rows (differentiable, not normalised), and the sums behind it.

    ``chunk`` logits of one depth exist at once.
    """
    assert teacher.whole_head is not None or not weights.need_rates, "acceptance rates need the whole head"
    found = _FusedHead.apply(head_weight_VdH, teacher, plan, weights, chunk, *normed)  # type: ignore[no-untyped-call]
    total, *sums = found
    return total, DepthSums(*sums)


class _FusedHead(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, head: Tensor, teacher: Teacher, plan: RowPlan, weights: TermWeights, chunk: int, *normed: Tensor
    ) -> tuple[Tensor, ...]:
        training, head_trains = any(ctx.needs_input_grad), ctx.needs_input_grad[0]
        sums = DepthSums(*torch.zeros(4, len(normed), dtype=torch.float32, device=head.device))
        d_head = torch.zeros_like(head, dtype=torch.float32) if head_trains else None
        d_normed = [torch.empty_like(rows) for rows in normed] if training else []
        width = len(teacher.whole_head or head)
        for chunk_U in _teacher_positions(plan).split(max(1, chunk // width)):
            teach_UV, whole_UV = _teach(teacher, chunk_U, head.dtype)
            for depth, (rows, hidden) in enumerate(zip(plan.depths, normed, strict=True)):
                part = _part(rows.teacher_r, chunk_U)
                if part.start == part.stop:
                    continue
                at_r = torch.searchsorted(chunk_U, rows.teacher_r[part])
                answer_r = teacher.answer_N[rows.teacher_r[part]]
                teach_rV, whole_rV = _rows(teach_UV, at_r), None if whole_UV is None else _rows(whole_UV, at_r)
                logits_rV = F.linear(hidden[part], head).float()
                probability_rV, best_r = _score(logits_rV, teach_rV, sums, depth)
                sums.correct_T[depth] += (teacher.draft_ids_Vd[best_r] == answer_r).sum()
                error_rV, scale = _error(probability_rV, teach_rV, whole_rV, weights, sums, depth)
                if training:
                    error_rV = error_rV.to(head.dtype)
                    if d_head is not None:
                        _add_product(d_head, error_rV.T, hidden[part] * scale)
                    torch.mm(error_rV, head, out=d_normed[depth][part])
                    d_normed[depth][part] *= scale
        ctx.save_for_backward(*d_normed, *([d_head] if d_head is not None else []))
        parts = (sums.loss_T, sums.correct_T, sums.rate_T, sums.log_rate_T)
        ctx.mark_non_differentiable(*parts)
        return (_total(plan, weights, sums), *parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        scale = grads[0]
        d_normed = list(ctx.saved_tensors)
        d_head = d_normed.pop() * scale if ctx.needs_input_grad[0] else None
        return (d_head, None, None, None, None, *(d * scale for d in d_normed))


def _teach(teacher: Teacher, chunk_U: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The teacher's probabilities of the draft tokens: normalised over the draft vocabulary, and over the whole one."""
    last_UH = teacher.last_NH[chunk_U].to(dtype)
    logits_UV = teacher.head(last_UH).float()
    whole_UV = None
    if teacher.whole_head is not None:
        lse_U1 = torch.logsumexp(teacher.whole_head(last_UH).float(), -1, keepdim=True)
        whole_UV = (logits_UV - lse_U1).exp()
    return F.softmax(logits_UV, -1), whole_UV


def _rows(by_position_UV: Tensor, at_r: Tensor) -> Tensor:
    return by_position_UV if len(at_r) == len(by_position_UV) else by_position_UV[at_r]


def _score(logits_rV: Tensor, teach_rV: Tensor, sums: DepthSums, depth: int) -> tuple[Tensor, Tensor]:
    """The draft's probabilities and best tokens; adds the rows' cross-entropy to the sums."""
    top_r, best_r = logits_rV.max(-1)
    probability_rV = F.softmax(logits_rV, -1)
    # log-sum-exp of a row, from its largest logit and that logit's probability.
    lse_r = top_r - probability_rV.gather(1, best_r[:, None])[:, 0].log()
    sums.loss_T[depth] += lse_r.sum() - torch.dot(teach_rV.flatten(), logits_rV.flatten())
    return probability_rV, best_r


def _error(
    probability_rV: Tensor, teach_rV: Tensor, whole_rV: Tensor | None, weights: TermWeights, sums: DepthSums, depth: int
) -> tuple[Tensor, float]:
    """d(loss)/d(logits) up to a factor, and that factor. May overwrite ``probability_rV``.

    d(CE)/dz = q - t;  d(rate)/dz_j = q_j ([q_j < p_j] - sum_v q_v [q_v < p_v]).
    """
    cross_entropy = weights.cross_entropy_T[depth]
    if whole_rV is None:
        return probability_rV.sub_(teach_rV), cross_entropy
    below_rV = probability_rV < whole_rV
    rate_r = torch.where(below_rV, probability_rV, whole_rV).sum(-1)
    log_rate_r = torch.where(rate_r > 0, rate_r.log(), 0.0)
    sums.rate_T[depth] += rate_r.sum()
    sums.log_rate_T[depth] += log_rate_r.sum()
    if not weights.need_rates:
        return probability_rV.sub_(teach_rV), cross_entropy
    inverse_r = torch.where(rate_r > 0, 1.0 / rate_r, 0.0)
    pull_r = weights.total_variation_T[depth] + weights.log_rate_T[depth] * inverse_r
    share_r = (probability_rV * below_rV).sum(-1)
    d_rate_rV = probability_rV * (below_rV.float() - share_r[:, None])
    error_rV = probability_rV.sub_(teach_rV).mul_(cross_entropy)
    return error_rV.addcmul_(d_rate_rV, pull_r[:, None].expand_as(d_rate_rV), value=-1.0), 1.0


def _total(plan: RowPlan, weights: TermWeights, sums: DepthSums) -> Tensor:
    """The weighted sum of all terms."""
    kept_T = torch.tensor([float(len(rows.kept_r)) for rows in plan.depths], device=sums.loss_T.device)
    terms = (
        (weights.cross_entropy_T, sums.loss_T),
        (weights.total_variation_T, kept_T - sums.rate_T),
        (weights.log_rate_T, -sums.log_rate_T),
    )
    total = torch.zeros((), device=sums.loss_T.device)
    for weight_T, sum_T in terms:
        if any(weight_T):
            total = total + (sum_T * torch.tensor(weight_T, device=sum_T.device)).sum()
    return total


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
