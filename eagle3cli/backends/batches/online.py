"""Batches whose states the live target makes on the spot."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import torch

from eagle3cli.backends.batches.batch import RowsByRank, TargetBatch
from eagle3cli.backends.target.group import SharedTarget
from eagle3cli.backends.target.on_policy import OnPolicyMeter
from eagle3cli.backends.target.target import LiveTarget, States, Tokens, tokens_of
from eagle3cli.data.hidden_states.rows import teacher_positions
from eagle3cli.data.tokens.rows import TokenRows
from eagle3cli.runtime.devices import to_device


class OnlineSource:
    """A BatchSource over token rows: one target pass per batch."""

    def __init__(self, target: LiveTarget, rows: TokenRows) -> None:
        self.target = target
        self.rows = rows
        self.meter: OnPolicyMeter | None = None
        """Sees, where there is one, whether the replies are the target's own."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of every row."""
        return self.rows.lengths

    def batch(self, rows: Sequence[int]) -> TargetBatch:
        """Run the target over these rows and keep what the draft's loss reads."""
        return self._batch(rows, self.target.capture(self._tokens(rows)))

    def _tokens(self, rows: Sequence[int]) -> list[Tokens]:
        return [tokens_of(self.rows[row]) for row in rows]

    def _batch(self, rows: Sequence[int], states: States) -> TargetBatch:
        picked = [self.rows[row] for row in rows]
        masks = [torch.tensor(row.loss_mask, dtype=torch.bool) for row in picked]
        cu_seqlens = tuple(accumulate((len(mask) for mask in masks), initial=0))
        where = torch.cat([begin + teacher_positions(mask) for begin, mask in zip(cu_seqlens, masks, strict=False)])
        where = to_device(where, self.target.device)
        last_NH = torch.cat([last for _, last in states])
        top_N = torch.full((len(last_NH),), -1, dtype=torch.long, device=last_NH.device)
        token_ids_N = torch.cat([torch.tensor(row.token_ids, dtype=torch.long) for row in picked])
        token_ids_N = to_device(token_ids_N, last_NH.device)
        loss_mask_N = torch.cat(masks)
        if self.meter is not None and self.meter.wants(rows):
            judged_2N = torch.zeros(2, len(last_NH), device=last_NH.device)
            # Where no token follows, nothing is judged.
            top_N[where], judged_2N[:, where] = self.target.head.judge(last_NH[where], token_ids_N.roll(-1)[where])
            self.meter.add(rows, token_ids_N, loss_mask_N, cu_seqlens, top_N, judged_2N)
        else:
            top_N[where] = self.target.head.top_tokens(last_NH[where])
        return TargetBatch(
            token_ids_N=token_ids_N,
            loss_mask_N=loss_mask_N,
            cu_seqlens=cu_seqlens,
            aux_NC=torch.cat([aux for aux, _ in states]),
            last_NH=last_NH,
            top_N=top_N,
            rows=tuple(rows),
        )


class SharedSource(OnlineSource):
    """The same with a target in shards on several processes: they all must ask for the same batches."""

    def __init__(self, target: SharedTarget, rows: TokenRows) -> None:
        super().__init__(target, rows)
        self.shared = target

    def own_batch(self, rows_by_rank: RowsByRank, rank: int) -> TargetBatch | None:
        """This process's part of a batch; where it has none, the target's part that the others need."""
        states = self.shared.capture_parts([self._tokens(rows) for rows in rows_by_rank[self.shared.neighbours]])
        rows = rows_by_rank[rank]
        return self._batch(rows, states) if rows else None


def online_source(target: LiveTarget, rows: TokenRows) -> OnlineSource:
    """The source of batches for a target, shared or not."""
    return SharedSource(target, rows) if isinstance(target, SharedTarget) else OnlineSource(target, rows)
