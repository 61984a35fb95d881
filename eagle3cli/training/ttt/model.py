"""From a batch to its loss."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eagle3cli.backends.batches.batch import TargetBatch
from eagle3cli.models.draft import Draft
from eagle3cli.training.ttt.loss import CHUNK_ELEMENTS, DepthSums, Teacher, TermWeights, depth_losses
from eagle3cli.training.ttt.positions import RowPlan
from eagle3cli.training.ttt.unroll import Attend, unroll


class Forward(nn.Module):
    """Unroll and loss as one module, so that weights that are kept in shards are whole inside of it."""

    def __init__(self, draft: Draft, attend: Attend, *, recompute: bool = False, chunk: int = CHUNK_ELEMENTS) -> None:
        super().__init__()
        self.draft, self.attend, self.recompute, self.chunk = draft, attend, recompute, chunk

    def forward(
        self, batch: TargetBatch, plan: RowPlan, teacher: Teacher, embedding_VH: Tensor, weights: TermWeights
    ) -> tuple[Tensor, DepthSums]:
        """The weighted sum of the losses over all kept rows, and the sums behind it."""
        draft = self.draft
        normed = unroll(
            draft,
            batch.token_ids_N,
            batch.aux_NC.to(draft.fc.weight.dtype),
            draft.embedding(embedding_VH),
            plan,
            attend=self.attend,
            recompute=self.recompute,
        )
        return depth_losses(normed, draft.lm_head.weight, teacher, plan, weights, self.chunk)

    def nothing(self) -> Tensor:
        """Zero, with a zero gradient for every trained weight."""
        trained = [weight for weight in self.draft.parameters() if weight.requires_grad]
        total = torch.zeros((), device=trained[0].device)
        for weight in trained:
            total = total + weight.sum().float() * 0.0
        return total
