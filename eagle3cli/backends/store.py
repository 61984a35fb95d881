"""Batches whose states come from disk, in the form that the live target gives them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from eagle3cli.backends.batch import TargetBatch
from eagle3cli.data.store import Store, teacher_positions


class StoreSource:
    """A BatchSource over a hidden-state store.

    ``dtype`` of the states: as a live target's by default, float32 on a CPU and the store's bf16 on a GPU.
    """

    def __init__(self, store: Store, *, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        self.store, self.device = store, device or torch.device("cpu")
        self.dtype = dtype or (torch.float32 if self.device.type == "cpu" else torch.bfloat16)

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of every row."""
        return self.store.lengths

    def batch(self, rows: Sequence[int]) -> TargetBatch:
        """Read these rows; positions whose states nobody reads are zero."""
        picked = [self.store[row] for row in rows]
        bounds = tuple(accumulate((len(row.token_ids_S) for row in picked), initial=0))
        meta = self.store.meta
        aux_NC = torch.zeros(bounds[-1], meta.aux_width, dtype=self.dtype)
        last_NH = torch.zeros(bounds[-1], meta.hidden_size, dtype=self.dtype)
        top_N = torch.full((bounds[-1],), -1, dtype=torch.long)
        for start, row in zip(bounds, picked, strict=False):
            aux_NC[start : start + len(row.aux_UC)] = row.aux_UC
            where = start + teacher_positions(row.loss_mask_S)
            last_NH[where] = row.last_RH.to(self.dtype)
            top_N[where] = row.top_R
        return TargetBatch(
            token_ids_N=torch.cat([row.token_ids_S for row in picked]).to(self.device),
            loss_mask_N=torch.cat([row.loss_mask_S for row in picked]).to(self.device),
            bounds=bounds,
            aux_NC=aux_NC.to(self.device),
            last_NH=last_NH.to(self.device),
            top_N=top_N.to(self.device),
            rows=tuple(rows),
        )
