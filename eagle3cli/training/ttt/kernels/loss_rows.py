"""Rows of logits on a GPU: their log-sum-exp, and the loss with its gradient in one visit.

A program handles one row. It reads the row block by block, first for what needs the whole row and then once more for
what follows from it; a row of 32,000 tokens is still in the cache by then. Nothing but the gradient is as large as the
logits, and that is written over them. The plain twin is ``plain_rows``; the shape legend is in
``models/draft.py``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from eagle3cli.training.ttt.kernels.plain_rows import ScoredRows, TeacherRows

BLOCK = 4096
"""Tokens that a program reads at a time."""
WARPS = 8
LOWEST = tl.constexpr(-1.0e30)
"""Below every logit, and finite: the difference of two of them is a number, that of two infinities is not."""


@triton.jit
def lse_kernel(logits_ptr, lse_ptr, width, stride, BLOCK: tl.constexpr):
    """``lse[row] = log sum_v exp logits[row, v]``, in fp32 whatever the logits are."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * stride
    top = LOWEST
    total = 0.0
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        z = tl.load(logits_ptr + column, mask=column < width, other=-float("inf")).to(tl.float32)
        larger = tl.maximum(top, tl.max(z, 0))
        total = total * tl.exp(top - larger) + tl.sum(tl.exp(z - larger), 0)
        top = larger
    tl.store(lse_ptr + row, top + tl.log(total))


@triton.jit
def score_kernel(
    logits_ptr,
    teacher_ptr,
    teacher_lse_ptr,
    whole_lse_ptr,
    answer_ptr,
    draft_ids_ptr,
    at_ptr,
    step_ptr,
    slot_ptr,
    weights_ptr,
    sums_ptr,
    width,
    logits_stride,
    teacher_stride,
    steps,
    slots,
    RATES: tl.constexpr,
    TRAINING: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One row: its cross-entropy, whether its best token is right, its rate, and d(loss)/d(logits) over the logits.

    With q = softmax(logits), t the teacher over the draft vocabulary and p over the whole one (RATES):
    ``d(logits) = ce (q - t) - (tv + lk / rate) q ([q < p] - sum_v q_v [q_v < p_v])``.
    """
    row = tl.program_id(0).to(tl.int64)
    at = tl.load(at_ptr + row)
    step = tl.load(step_ptr + row)
    slot = tl.load(slot_ptr + row)
    logits_ptr += row * logits_stride
    teacher_ptr += at * teacher_stride
    teacher_lse = tl.load(teacher_lse_ptr + at)

    top = LOWEST
    total = 0.0
    dot = 0.0
    best = 0
    for start in range(0, width, BLOCK):
        column = start + tl.arange(0, BLOCK)
        inside = column < width
        z = tl.load(logits_ptr + column, mask=inside, other=-float("inf")).to(tl.float32)
        u = tl.load(teacher_ptr + column, mask=inside, other=-float("inf")).to(tl.float32)
        t = tl.exp(u - teacher_lse)
        block_top = tl.max(z, 0)
        best = tl.where(block_top > top, start + tl.argmax(z, 0), best)
        larger = tl.maximum(top, block_top)
        total = total * tl.exp(top - larger) + tl.sum(tl.exp(z - larger), 0)
        # A token that the teacher never says adds nothing, even where the draft says -inf.
        dot += tl.sum(tl.where(t > 0, t * z, 0.0), 0)
        top = larger
    lse = top + tl.log(total)
    best = tl.minimum(best, width - 1)  # NaN in the logits must not become an address
    right = tl.load(draft_ids_ptr + best) == tl.load(answer_ptr + at)
    tl.store(sums_ptr + slot, lse - dot)
    tl.store(sums_ptr + slots + slot, right.to(tl.float32))

    rate = 0.0
    share = 0.0
    if RATES:
        whole_lse = tl.load(whole_lse_ptr + at)
        for start in range(0, width, BLOCK):
            column = start + tl.arange(0, BLOCK)
            inside = column < width
            z = tl.load(logits_ptr + column, mask=inside, other=-float("inf")).to(tl.float32)
            u = tl.load(teacher_ptr + column, mask=inside, other=-float("inf")).to(tl.float32)
            q = tl.exp(z - lse)
            p = tl.exp(u - whole_lse)
            below = q < p
            rate += tl.sum(tl.where(below, q, p), 0)
            share += tl.sum(tl.where(below, q, 0.0), 0)
        log_rate = tl.where(rate > 0, tl.log(tl.where(rate > 0, rate, 1.0)), 0.0)
        tl.store(sums_ptr + 2 * slots + slot, rate)
        tl.store(sums_ptr + 3 * slots + slot, log_rate)

    if TRAINING:
        cross_entropy = tl.load(weights_ptr + step)
        if RATES:
            inverse = tl.where(rate > 0, 1.0 / tl.where(rate > 0, rate, 1.0), 0.0)
            pull = tl.load(weights_ptr + steps + step) + tl.load(weights_ptr + 2 * steps + step) * inverse
            whole_lse = tl.load(whole_lse_ptr + at)
        for start in range(0, width, BLOCK):
            column = start + tl.arange(0, BLOCK)
            inside = column < width
            z = tl.load(logits_ptr + column, mask=inside, other=-float("inf")).to(tl.float32)
            u = tl.load(teacher_ptr + column, mask=inside, other=-float("inf")).to(tl.float32)
            q = tl.exp(z - lse)
            d = cross_entropy * (q - tl.exp(u - teacher_lse))
            if RATES:
                below = q < tl.exp(u - whole_lse)
                d -= pull * q * (tl.where(below, 1.0, 0.0) - share)
            tl.store(logits_ptr + column, d.to(logits_ptr.dtype.element_ty), mask=inside)


def lse_rows(logits_RV: Tensor) -> Tensor:
    """Log-sum-exp of every row ``[R]``, fp32; no fp32 copy of the logits is made."""
    lse_R = torch.empty(len(logits_RV), dtype=torch.float32, device=logits_RV.device)
    if len(logits_RV):
        width = logits_RV.shape[1]
        with torch.cuda.device_of(logits_RV):
            lse_kernel[(len(logits_RV),)](logits_RV, lse_R, width, logits_RV.stride(0), BLOCK=BLOCK, num_warps=WARPS)
    return lse_R


def score_rows(logits_LW: Tensor, teacher: TeacherRows, rows: ScoredRows, sums_4P: Tensor, *, training: bool) -> None:
    """As ``plain_rows.score_rows``."""
    if not len(logits_LW):
        return
    rates = teacher.whole_lse_U is not None
    with torch.cuda.device_of(logits_LW):
        score_kernel[(len(logits_LW),)](
            logits_LW,
            teacher.logits_UW,
            teacher.lse_U,
            teacher.whole_lse_U if rates else teacher.lse_U,
            teacher.answer_U,
            teacher.draft_ids_W,
            rows.at_L,
            rows.step_L,
            rows.slot_L,
            rows.weights_3T,
            sums_4P,
            logits_LW.shape[1],
            logits_LW.stride(0),
            teacher.logits_UW.stride(0),
            rows.weights_3T.shape[1],
            sums_4P.shape[1],
            RATES=rates,
            TRAINING=training,
            BLOCK=BLOCK,
            num_warps=WARPS,
        )
