"""Batches whose states the live target makes on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from eagle3cli.backends.batches.batch import TargetBatch
from eagle3cli.backends.target.group import SharedTarget
from eagle3cli.backends.target.target import LiveTarget
from eagle3cli.data.hidden_states.rows import teacher_positions
from eagle3cli.data.tokens.rows import TokenRows
from eagle3cli.runtime.devices import to_device


class OnlineSource:
    """A BatchSource over token rows: one target pass per batch."""

    def __init__(self, target: LiveTarget, rows: TokenRows) -> None:
        self.target = target
        self.rows = rows

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of every row."""
        return self.rows.lengths

    def take_part(self) -> None:
        """Run this process's part of a shared target on the others' rows."""
        if isinstance(self.target, SharedTarget):
            self.target.capture([])

    def batch(self, rows: Sequence[int]) -> TargetBatch:
        """Run the target over these rows and keep what the draft's loss reads."""
        picked = [self.rows[r] for r in rows]
        masks = [torch.tensor(row.loss_mask, dtype=torch.bool) for row in picked]
        states = self.target.capture([row.token_ids for row in picked])
        cu_seqlens = tuple(accumulate((len(mask) for mask in masks), initial=0))
        where = torch.cat([begin + teacher_positions(mask) for begin, mask in zip(cu_seqlens, masks, strict=False)])
        where = to_device(where, self.target.device)
        last_NH = torch.cat([last for _, last in states])
        top_N = torch.full((len(last_NH),), -1, dtype=torch.long, device=last_NH.device)
        top_N[where] = self.target.head.top_tokens(last_NH[where])
        token_ids_N = torch.cat([torch.tensor(row.token_ids, dtype=torch.long) for row in picked])
        return TargetBatch(
            token_ids_N=to_device(token_ids_N, last_NH.device),
            loss_mask_N=torch.cat(masks),
            cu_seqlens=cu_seqlens,
            aux_NC=torch.cat([aux for aux, _ in states]),
            last_NH=last_NH,
            top_N=top_N,
            rows=tuple(rows),
            top_host_N=top_N if top_N.device.type == "cpu" else None,
        )
