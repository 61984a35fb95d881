"""Losses between target and draft over the draft vocabulary, with no logits kept: what they are, and how on a CPU.

All steps' positions that share a teacher position are scored together, a chunk of teacher positions at a time: the
teacher's probabilities are made once per position, not once per step, and the loss, its gradient for the hidden states
and its gradient for the head come out of the same pass. Memory holds one chunk of logits, whatever the number of steps.

Per position, with the draft's probabilities q, the teacher's p over the whole vocabulary and t = p restricted to the
draft vocabulary and normalised again, the loss is a weighted sum of three terms:

    cross-entropy      -sum_v t_v log q_v                       (forward KL up to a constant; the default)
    total variation    1 - rate,  rate = sum_v min(p_v, q_v)    (rate: the chance that a sampled token is accepted)
    log rate           -log rate                                (LK, "acceptance-based"; 0 where the rate is 0)

A GPU takes larger bites, in ``fused_loss.py``; the numbers are these.
The shape legend is in ``models/draft.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eagle3cli.backends.target.logits import Head
from eagle3cli.runtime.distributed import SINGLE_PROCESS, Ranks
from eagle3cli.settings.training import TrainSettings
from eagle3cli.training.ttt.unroll import PositionPlan

CHUNK_ELEMENTS = 4_000_000
"""Logits of one step that exist at once on a CPU, unless the settings say otherwise (16 MB in fp32)."""
CUDA_CHUNK_ELEMENTS = 256_000_000
"""Logits of all steps that exist at once on a GPU (512 MB in bf16): some 8,000 rows of 32,000 tokens, for which the
arithmetic of a chunk's products is, by a roofline, more than ten times what reading the head and its gradient costs."""


@dataclass(frozen=True)
class LossWeights:
    """Weight of each term at each step of the unroll, for a sum over positions."""

    cross_entropy_T: list[float]
    total_variation_T: list[float]
    log_rate_T: list[float]
    follow_rates: bool = False
    """Whether the next training step's weights depend on this one's acceptance rates."""

    @classmethod
    def of_cross_entropy(cls, decay_T: list[float]) -> LossWeights:
        """Cross-entropy alone."""
        zeros = [0.0] * len(decay_T)
        return cls(decay_T, zeros, zeros)

    @property
    def need_rates(self) -> bool:
        """Whether any term asks for acceptance rates."""
        return any(self.total_variation_T) or any(self.log_rate_T)


def loss_weights(settings: TrainSettings, rates_T: Sequence[float]) -> LossWeights:
    """The weights of one training step; ``rates_T`` are the acceptance rates of the one before, empty at the start.

    ``mix`` weighs cross-entropy against total variation by ``k_i = scale * exp(-decay * rate_i)`` (LK losses), where
    ``rate_i`` is the mean acceptance rate of step i of the unroll in the training step before: a constant within a
    training step, so that accumulated micro batches give what the large batch gives.
    """
    decay_T = [settings.loss_decay**i for i in range(settings.ttt_length)]
    zeros = [0.0] * len(decay_T)
    if settings.loss == "kl":
        return LossWeights.of_cross_entropy(decay_T)
    if settings.loss == "tv":
        return LossWeights(zeros, decay_T, zeros)
    if settings.loss == "lk":
        return LossWeights(zeros, zeros, decay_T)
    share_T = [settings.kl_scale * math.exp(-settings.kl_decay * rate) for rate in rates_T or zeros]
    kl_T = [decay * share for decay, share in zip(decay_T, share_T, strict=True)]
    tv_T = [decay - kl for decay, kl in zip(decay_T, kl_T, strict=True)]
    return LossWeights(kl_T, tv_T, zeros, follow_rates=True)


@dataclass(frozen=True)
class LossSums:
    """Sums over the positions with loss at every step, ``[T]`` each; tensors, so that nobody waits for them."""

    loss_T: Tensor
    """Sum of the cross-entropies (nats)."""
    correct_T: Tensor
    """Positions whose most likely draft token is the answer."""
    rate_T: Tensor
    """Sum of the acceptance rates; zeros where the teacher has no whole head."""
    log_rate_T: Tensor
    """Sum of their logarithms."""
    with_loss_T: Tensor | None = None
    """How many they are, where the plan cannot say: see ``PositionPlan.taught_N``."""


def mean_rates(sums: Sequence[LossSums], with_loss_T: Sequence[int], ranks: Ranks = SINGLE_PROCESS) -> list[float]:
    """Mean acceptance rate of every step over all micro batches and ranks; nothing where no position carried loss."""
    if not any(with_loss_T):
        return []
    mine_T = torch.stack([part.rate_T for part in sums]).sum(0).tolist() if sums else [0.0] * len(with_loss_T)
    return [rate / max(1, count) for rate, count in zip(ranks.all_reduce_sum(mine_T), with_loss_T, strict=True)]


@dataclass(frozen=True)
class Teacher:
    """What teaches a batch."""

    last_NH: Tensor
    """Target's last hidden states by packed position."""
    answer_N: Tensor
    """Target token by packed teacher position that counts as right."""
    head: Head
    """The target's head, restricted to the draft vocabulary."""
    draft_ids_W: Tensor
    """Target token of every draft token."""
    whole_head: Head | None = None
    """The target's whole head, for acceptance rates."""


def chunk_elements(device_type: str) -> int:
    """Logits that exist at once on such a device, unless the settings say otherwise."""
    return CUDA_CHUNK_ELEMENTS if device_type == "cuda" else CHUNK_ELEMENTS


def ttt_loss(
    normed: list[Tensor],
    head_weight_WH: Tensor,
    teacher: Teacher,
    plan: PositionPlan,
    weights: LossWeights,
    chunk: int | None = None,
) -> tuple[Tensor, LossSums]:
    """The weighted sum of all terms over all positions with loss (differentiable, not normalised), and its sums.

    ``normed`` holds the normed hidden states ``[L, H]`` of every step; ``chunk`` logits of one step exist at once, None
    is what suits the device.
    """
    assert teacher.whole_head is not None or not weights.need_rates, "acceptance rates need the whole head"
    chunk = chunk or chunk_elements(head_weight_WH.device.type)
    total, *sums = _FusedHead.apply(head_weight_WH, teacher, plan, weights, chunk, *normed)  # type: ignore[no-untyped-call]
    return total, LossSums(*sums)


class _FusedHead(torch.autograd.Function):
    """Head and loss in one: the gradients of both are made while the logits are there, in the forward pass.

    Backward only scales them. So no logits are kept between the passes, and none are made twice.
    """

    @staticmethod
    def forward(
        ctx: Any, head: Tensor, teacher: Teacher, plan: PositionPlan, weights: LossWeights, chunk: int, *normed: Tensor
    ) -> tuple[Tensor, ...]:
        training = any(ctx.needs_input_grad)
        sums = LossSums(*torch.zeros(4, len(normed), dtype=torch.float32, device=head.device))
        # Every chunk of every step adds to the head's gradient: a bf16 sum would lose what the small parts add.
        d_head = torch.zeros_like(head, dtype=torch.float32) if ctx.needs_input_grad[0] else None
        # Not zeroed: a position with loss has one teacher, which lies in one chunk, so each row is written just once.
        d_normed = [torch.empty_like(states_LH) for states_LH in normed] if training else []
        # The widest logits decide how many positions fit into a chunk: the whole head's, where rates read it.
        width = len(teacher.whole_head or head)
        for position_U in all_teachers(plan).split(max(1, chunk // width)):
            _add_chunk(position_U, head, teacher, plan, weights, sums, normed, d_head, d_normed)
        ctx.save_for_backward(*d_normed, *([d_head] if d_head is not None else []))
        parts = (sums.loss_T, sums.correct_T, sums.rate_T, sums.log_rate_T)
        ctx.mark_non_differentiable(*parts)
        return (_total(plan, weights, sums), *parts)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # The sums are only to be read: the total's gradient is all that comes back, one number for all of them.
        scale = grads[0]
        d_normed = list(ctx.saved_tensors)
        d_head = d_normed.pop() * scale if ctx.needs_input_grad[0] else None
        return (d_head, None, None, None, None, *(d * scale for d in d_normed))


def _add_chunk(
    position_U: Tensor,
    head: Tensor,
    teacher: Teacher,
    plan: PositionPlan,
    weights: LossWeights,
    sums: LossSums,
    normed: Sequence[Tensor],
    d_head: Tensor | None,
    d_normed: Sequence[Tensor],
) -> None:
    """Score what the teacher positions of one chunk teach: adds to the sums and to the head's gradient, and fills in
    the rows of ``d_normed`` unless that is empty.

    A function of its own, so that a chunk's logits are gone before the next one's are made.
    """
    teacher_UW, whole_UW = _teacher_probabilities(teacher, position_U, head.dtype)
    for step, (positions, states_LH) in enumerate(zip(plan.steps, normed, strict=True)):
        part = positions_in(positions.teacher_L, position_U)
        if part.start == part.stop:  # deep steps have fewer positions, and some chunks none of theirs
            continue
        teacher_L = positions.teacher_L[part]
        # Where no position was pruned the two are the same, and nothing is gathered.
        at_L = torch.searchsorted(position_U, teacher_L)
        teacher_LW = _rows(teacher_UW, at_L)
        whole_LW = None if whole_UW is None else _rows(whole_UW, at_L)
        draft_LW, best_L = _score(F.linear(states_LH[part], head).float(), teacher_LW, sums, step)
        sums.correct_T[step] += (teacher.draft_ids_W[best_L] == teacher.answer_N[teacher_L]).sum()
        d_logits_LW, scale = _d_logits(draft_LW, teacher_LW, whole_LW, weights, sums, step)
        del draft_LW, teacher_LW, whole_LW  # before the next step's are made
        if not d_normed:
            continue
        d_logits_LW = d_logits_LW.to(head.dtype)
        # The scalar goes to the narrow matrix [L, H]: over [L, W] it would cost one more pass of the logits.
        if d_head is not None:
            _add_product(d_head, d_logits_LW.T, states_LH[part] * scale)
        torch.mm(d_logits_LW, head, out=d_normed[step][part])
        d_normed[step][part] *= scale
        del d_logits_LW


def _teacher_probabilities(teacher: Teacher, position_U: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
    """The teacher's probabilities of the draft tokens: normalised over the draft vocabulary, and over the whole one."""
    last_UH = teacher.last_NH[position_U].to(dtype)
    logits_UW = teacher.head(last_UH).float()
    whole_UW = None
    if teacher.whole_head is not None:
        # p of the draft's tokens needs the whole vocabulary's normaliser and nothing else of its logits.
        lse_U1 = torch.logsumexp(teacher.whole_head(last_UH).float(), -1, keepdim=True)
        whole_UW = (logits_UW - lse_U1).exp()
    return F.softmax(logits_UW, -1), whole_UW


def _rows(by_position_UW: Tensor, at_L: Tensor) -> Tensor:
    """The rows of these positions; the table itself where they are all of them, which saves a copy of it."""
    return by_position_UW if len(at_L) == len(by_position_UW) else by_position_UW[at_L]


def _score(logits_LW: Tensor, teacher_LW: Tensor, sums: LossSums, step: int) -> tuple[Tensor, Tensor]:
    """The draft's probabilities and best tokens; adds the positions' cross-entropy to the sums.

    ``-sum_v t_v log q_v = lse - sum_v t_v z_v``, since t sums to 1: one dot product, and no log-probabilities.
    """
    top_L, best_L = logits_LW.max(-1)
    # One softmax for the loss, the rates and the gradient: q itself is what d(loss)/d(logits) is made of.
    draft_LW = F.softmax(logits_LW, -1)
    # log-sum-exp from the largest logit and that logit's probability: the softmax has made the sum already.
    lse_L = top_L - draft_LW.gather(1, best_L[:, None])[:, 0].log()
    sums.loss_T[step] += lse_L.sum() - torch.dot(teacher_LW.flatten(), logits_LW.flatten())
    return draft_LW, best_L


def _d_logits(
    draft_LW: Tensor, teacher_LW: Tensor, whole_LW: Tensor | None, weights: LossWeights, sums: LossSums, step: int
) -> tuple[Tensor, float]:
    """d(loss)/d(logits) up to a factor, and that factor. May overwrite ``draft_LW``.

    d(CE)/dz = q - t;  d(rate)/dz_j = q_j ([q_j < p_j] - sum_v q_v [q_v < p_v]).

    The factor is left out of the large matrix, where it would cost a pass over it, and goes to the small ones.
    """
    cross_entropy = weights.cross_entropy_T[step]
    if whole_LW is None:
        return draft_LW.sub_(teacher_LW), cross_entropy
    # min(p, q) and the tokens where q is the smaller, which alone pull the rate: q_j enters it there and nowhere else.
    below_LW = draft_LW < whole_LW
    rate_L = torch.where(below_LW, draft_LW, whole_LW).sum(-1)
    # Where the rate is 0 (no token in common, or fp32 rounds to none) its logarithm and that one's slope count as 0.
    log_rate_L = torch.where(rate_L > 0, rate_L.log(), 0.0)
    sums.rate_T[step] += rate_L.sum()
    sums.log_rate_T[step] += log_rate_L.sum()
    if not weights.need_rates:
        return draft_LW.sub_(teacher_LW), cross_entropy
    inverse_L = torch.where(rate_L > 0, 1.0 / rate_L, 0.0)
    pull_L = weights.total_variation_T[step] + weights.log_rate_T[step] * inverse_L
    share_L = (draft_LW * below_LW).sum(-1)
    d_rate_LW = draft_LW * (below_LW.float() - share_L[:, None])
    # The rate's own slope is made before this line overwrites q.
    d_logits_LW = draft_LW.sub_(teacher_LW).mul_(cross_entropy)
    return d_logits_LW.addcmul_(d_rate_LW, pull_L[:, None].expand_as(d_rate_LW), value=-1.0), 1.0


def _total(plan: PositionPlan, weights: LossWeights, sums: LossSums) -> Tensor:
    """The weighted sum of all terms."""
    # Total variation is 1 - rate at every position: their number less the sum of the rates.
    with_loss_T = torch.tensor([float(len(step.loss_L)) for step in plan.steps], device=sums.loss_T.device)
    terms = (
        (weights.cross_entropy_T, sums.loss_T),
        (weights.total_variation_T, with_loss_T - sums.rate_T),
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


def all_teachers(plan: PositionPlan) -> Tensor:
    """All packed positions that teach some position at some step, ascending."""
    position_U: Tensor = torch.cat([step.teacher_L for step in plan.steps]).unique()
    return position_U


def positions_in(teacher_L: Tensor, position_U: Tensor) -> slice:
    """The positions whose teacher lies in the chunk; teachers ascend within a step, so they are a slice."""
    # The host reads both ends: free on a CPU, a wait on a GPU, where fused_loss.py cuts all chunks at once instead.
    low = int(torch.searchsorted(teacher_L, position_U[0]))
    high = int(torch.searchsorted(teacher_L, position_U[-1], right=True))
    return slice(low, high)


@torch.no_grad()
def best_tokens(normed: list[Tensor], head_weight_WH: Tensor, draft_ids_W: Tensor) -> list[Tensor]:
    """The draft's most likely token for the positions of every step, as target tokens, some positions at a time."""
    tokens = []
    size = max(1, chunk_elements(head_weight_WH.device.type) // len(head_weight_WH))
    for states_LH in normed:
        parts = [F.linear(part, head_weight_WH).argmax(-1) for part in states_LH.split(size)]
        tokens.append(draft_ids_W[torch.cat(parts)])
    return tokens
