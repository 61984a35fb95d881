"""Rows of logits in plain torch: what the kernels of ``loss_rows`` must equal, and what runs where Triton does not.

The shape legend is in ``models/draft.py``; P counts the positions with loss of all steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class TeacherRows:
    """What the teacher says at the positions of a chunk, and what it takes to read it."""

    logits_UW: Tensor
    lse_U: Tensor
    """Log-sum-exp over the draft vocabulary, fp32."""
    whole_lse_U: Tensor | None
    """Log-sum-exp over the whole vocabulary, fp32, where rates are asked for."""
    answer_U: Tensor
    """Target token that counts as right."""
    draft_ids_W: Tensor
    """Target token of every draft token."""


@dataclass(frozen=True)
class ScoredRows:
    """Whose logits are scored, row by row."""

    at_L: Tensor
    """Index of the row's teacher in the chunk."""
    step_L: Tensor
    """Step of the unroll that the row belongs to."""
    slot_L: Tensor
    """Column of the sums that the row fills."""
    weights_3T: Tensor
    """Weights of cross-entropy, total variation and log rate at every step, fp32."""


def lse_rows(logits_RV: Tensor) -> Tensor:
    """Log-sum-exp of every row ``[R]``, fp32."""
    return torch.logsumexp(logits_RV.float(), 1)


def score_rows(logits_LW: Tensor, teacher: TeacherRows, rows: ScoredRows, sums_4P: Tensor, *, training: bool) -> None:
    """Cross-entropy, right or not, rate and log rate of every row into its column of ``sums_4P``.

    When ``training``, ``logits_LW`` becomes d(loss)/d(logits), the weights of the row's step included.
    """
    z_LW = logits_LW.float()
    u_LW = teacher.logits_UW.float()[rows.at_L]
    teacher_LW = (u_LW - teacher.lse_U[rows.at_L, None]).exp()
    lse_L = torch.logsumexp(z_LW, 1)
    # A token that the teacher never says adds nothing, even where the draft says -inf.
    dot_L = torch.where(teacher_LW > 0, teacher_LW * z_LW, 0.0).sum(1)
    right_L = teacher.draft_ids_W[z_LW.argmax(1)] == teacher.answer_U[rows.at_L]
    sums_4P[0, rows.slot_L] = lse_L - dot_L
    sums_4P[1, rows.slot_L] = right_L.float()
    draft_LW = (z_LW - lse_L[:, None]).exp()
    cross_entropy_L, total_variation_L, log_rate_weight_L = rows.weights_3T[:, rows.step_L]
    d_logits_LW = cross_entropy_L[:, None] * (draft_LW - teacher_LW)
    if teacher.whole_lse_U is not None:
        whole_LW = (u_LW - teacher.whole_lse_U[rows.at_L, None]).exp()
        below_LW = draft_LW < whole_LW
        rate_L = torch.minimum(draft_LW, whole_LW).sum(1)
        sums_4P[2, rows.slot_L] = rate_L
        sums_4P[3, rows.slot_L] = torch.where(rate_L > 0, rate_L.log(), 0.0)
        pull_L = total_variation_L + log_rate_weight_L * torch.where(rate_L > 0, 1.0 / rate_L, 0.0)
        share_L = (draft_LW * below_LW).sum(1)
        d_logits_LW -= pull_L[:, None] * draft_LW * (below_LW.float() - share_L[:, None])
    if training:
        logits_LW.copy_(d_logits_LW)
