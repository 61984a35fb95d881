"""From a batch to its loss: which positions count, the unroll over them, and the loss of every step."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from eagle3cli.backends.batches.batch import TargetBatch
from eagle3cli.backends.target.logits import Head
from eagle3cli.models.draft import Draft
from eagle3cli.settings.training import TrainSettings
from eagle3cli.training.ttt.fused_loss import fused_ttt_loss
from eagle3cli.training.ttt.loss import LossSums, LossWeights, Teacher, ttt_loss
from eagle3cli.training.ttt.unroll import (
    Attend,
    PositionPlan,
    dealt,
    draw_anchors,
    plan_positions,
    step_zero_alone,
    unroll,
)


@dataclass(frozen=True)
class TargetWeights:
    """The weights of the frozen target that training reads."""

    embedding_VH: Tensor
    draft_head: Head
    """The target's head, restricted to the draft vocabulary."""
    whole_head: Head | None = None
    """The target's whole head; only losses with acceptance rates read it."""


class TTTModel(nn.Module):
    """Unroll and loss as one module, so that FSDP has weights whole inside of it that lie in shards outside."""

    def __init__(
        self,
        draft: Draft,
        target: TargetWeights,
        attend: Attend,
        *,
        recompute: bool = False,
        chunk: int | None = None,
    ) -> None:
        super().__init__()
        self.draft = draft
        self.target = target
        self.attend = attend
        self.recompute = recompute
        self.chunk = chunk
        self.expressible_V = draft.t2d.cpu()
        """Which target tokens the draft vocabulary has, in the host's memory."""

    def plan(self, batch: TargetBatch, settings: TrainSettings, step: int) -> PositionPlan:
        """The positions of a batch in a 0-based training step, planned on the host while the device is at work.

        The answers of a live target on a GPU are not waited for: the device leaves out those that the draft vocabulary
        does not have.
        """
        shard = batch.shard
        cu_seqlens = batch.cu_seqlens if shard is None else shard.cu_seqlens
        anchors_N = draw_anchors(batch.rows, cu_seqlens, settings.anchor_fraction, seed=settings.seed, step=step)
        if shard is not None:
            anchors_N = shard.own_n if anchors_N is None else anchors_N[shard.packed_n] & shard.own_n
        top_N = batch.top_N if batch.top_N.device.type == "cpu" else batch.top_host_N
        expressible_N = torch.ones_like(batch.loss_mask_N) if top_N is None else self.expressible_V[top_N]
        plan = plan_positions(
            batch.loss_mask_N,
            batch.cu_seqlens,
            expressible_N,
            settings.ttt_length,
            settings.alignment,
            anchors_N,
        )
        plan = (plan if shard is None else dealt(plan, shard)).to(batch.token_ids_N.device)
        return plan if top_N is not None else replace(plan, taught_N=self.draft.t2d[batch.top_N])

    def forward(self, batch: TargetBatch, plan: PositionPlan, weights: LossWeights) -> tuple[Tensor, LossSums]:
        """The weighted sum of the losses over all positions with loss, and the sums behind it."""
        draft = self.draft
        target = self.target
        if plan.empty:
            assert plan.shard is not None, "alone, a batch without loss needs no pass"
            aux_NC = batch.aux_NC.to(draft.fc.weight.dtype)
            total = step_zero_alone(draft, batch.token_ids_N, aux_NC, target.embedding_VH, plan, self.attend)
            return total, LossSums(*total.new_zeros(4, len(plan.steps), dtype=torch.float32).detach())
        normed = unroll(
            draft,
            batch.token_ids_N,
            batch.aux_NC.to(draft.fc.weight.dtype),
            target.embedding_VH,
            plan,
            attend=self.attend,
            recompute=self.recompute,
        )
        teacher = Teacher(batch.last_NH, batch.top_N, target.draft_head, draft.draft_ids, target.whole_head)
        # A GPU takes larger bites than a CPU of the same loss.
        loss = fused_ttt_loss if draft.lm_head.weight.device.type == "cuda" else ttt_loss
        return loss(normed, draft.lm_head.weight, teacher, plan, weights, self.chunk)

    def zero_loss(self) -> Tensor:
        """Zero, with a zero gradient for every trained weight: the pass of a rank that has no rows."""
        trained = [weight for weight in self.draft.parameters() if weight.requires_grad]
        total = torch.zeros((), device=trained[0].device)
        for weight in trained:
            total = total + weight.sum().float() * 0.0
        return total
