"""A live target's states for ranks that share sequences: every pass is made once, and each rank gets its own positions.

The rows of a group are dealt to the targets that it has, whole; what a target says of its rows goes from rank to rank,
so that nobody holds all of a row but the ranks whose target has just read it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from eagle3cli.backends.batches.batch import BatchSource, RowsByRank, TargetBatch, partition
from eagle3cli.backends.batches.context import ContextGroup, ContextShard
from eagle3cli.backends.batches.online import OnlineSource, SharedSource
from eagle3cli.backends.target.group import SharedTarget
from eagle3cli.backends.target.target import LiveTarget, States
from eagle3cli.data.hidden_states.rows import teacher_positions
from eagle3cli.data.tokens.rows import TokenRows
from eagle3cli.runtime.devices import to_device


@dataclass(frozen=True)
class _Rows:
    """Rows of a group side by side, in the host's memory."""

    numbers: Sequence[int]
    token_ids_N: Tensor
    loss_mask_N: Tensor
    cu_seqlens: tuple[int, ...]
    judged: bool
    """Whether the target's opinion of the rows' own tokens is asked for, too."""


@dataclass(frozen=True)
class _Piece:
    """What a rank gets of the rows that one target has read."""

    aux_MC: Tensor
    last_nH: Tensor
    top_P: Tensor
    """int64, of all positions of these rows: -1 where nothing is taught."""
    judged_2P: Tensor
    """What :meth:`Head.judge` says at the same; empty where it was not asked."""

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of it, in the order in which it travels."""
        return self.aux_MC, self.last_nH, self.top_P, self.judged_2P


@dataclass(frozen=True)
class _Where:
    """Where the states of one target's rows stand for a rank."""

    row_P: Tensor
    """Packed positions of the rows."""
    aux_M: Tensor
    """Of them those whose auxiliary states the rank gets, by their place among them."""
    aux_at_M: Tensor
    """Places of these among the tokens that the rank holds."""
    last_n: Tensor
    last_at_n: Tensor


class DealtSource(OnlineSource):
    """This rank's part of sequences that it shares with its neighbours; they all must ask for the same batches."""

    def __init__(self, target: LiveTarget, rows: TokenRows, context: ContextGroup) -> None:
        super().__init__(target, rows)
        self.context = context
        self.tp_size = target.size if isinstance(target, SharedTarget) else 1
        self._seen = set[int]()
        """Rows whose tokens have been judged: all ranks of a group know the same."""

    def own_batch(self, rows_by_rank: RowsByRank, rank: int) -> TargetBatch | None:
        """This rank's positions of its group's rows; None where that has none."""
        size = self.context.size
        first = rank - rank % max(size, self.tp_size)
        groups = [rows_by_rank[at] for at in range(first, first + max(size, self.tp_size), size)]
        numbers = rows_by_rank[rank]
        if len(groups) == 1 and not numbers:
            return None
        shares, own = self._shares(groups, (rank - first) // size)
        # One pass for all that share a target, which may be several groups; of it the own group's states are kept.
        asked = [row for share in shares for row in share] if len(groups) > 1 else shares[own]
        states = self.target.capture(self._tokens(asked)) if asked else []
        if not numbers:
            return None
        if len(groups) > 1:
            begin = sum(map(len, shares[:own]))
            states = states[begin : begin + len(numbers)]
            shares = [list(numbers)]
        return self._dealt(self._packed(numbers), shares, states)

    def _shares(self, groups: Sequence[Sequence[int]], group: int) -> tuple[list[list[int]], int]:
        """The rows of each target of the group, and which is this rank's; where several groups have one target, the
        rows of each group, and which is this rank's."""
        if len(groups) > 1:
            return [list(rows) for rows in groups], group
        targets = max(1, self.context.size // self.tp_size)
        lengths = self.rows.lengths
        return partition(groups[0], lengths, targets), self.context.rank // self.tp_size if targets > 1 else 0

    def _packed(self, numbers: Sequence[int]) -> _Rows:
        picked = [self.rows[number] for number in numbers]
        ids = torch.cat([torch.tensor(row.token_ids, dtype=torch.long) for row in picked])
        mask = torch.cat([torch.tensor(row.loss_mask, dtype=torch.bool) for row in picked])
        judged = not self._seen.issuperset(numbers)
        self._seen.update(numbers)
        return _Rows(numbers, ids, mask, tuple(accumulate(map(len, picked), initial=0)), judged)

    def _dealt(self, rows: _Rows, shares: Sequence[Sequence[int]], states: States) -> TargetBatch:
        """This rank's part of a batch whose rows each target has its share of; ``states`` are those of the own one."""
        context = self.context
        own = context.deal(rows.cu_seqlens, rows.loss_mask_N)
        device = self.target.device
        held = len(own.packed_n)
        hidden = self.target.embedding_VH.shape[1]
        dtype = self.target.embedding_VH.dtype
        aux_nC = torch.zeros(held, hidden * len(self.target.aux_layers), dtype=dtype, device=device)
        last_nH = torch.zeros(held, hidden, dtype=dtype, device=device)
        top_N = torch.full((len(rows.token_ids_N),), -1, dtype=torch.long, device=device)
        judged_2N = torch.zeros(2 if rows.judged else 0, len(top_N), device=device)
        for place, piece in self._pieces(rows, shares, states, own):
            aux_nC[to_device(place.aux_at_M, device)] = piece.aux_MC
            last_nH[to_device(place.last_at_n, device)] = piece.last_nH
            row_P = to_device(place.row_P, device)
            top_N[row_P] = piece.top_P
            judged_2N[:, row_P] = piece.judged_2P
        token_ids_N = to_device(rows.token_ids_N, device)
        if self.meter is not None and rows.judged and self.meter.wants(rows.numbers):
            self.meter.add(rows.numbers, token_ids_N, rows.loss_mask_N, rows.cu_seqlens, top_N, judged_2N)
        packed_n = to_device(own.packed_n, device)
        return TargetBatch(
            token_ids_N=token_ids_N[packed_n],
            loss_mask_N=rows.loss_mask_N[own.packed_n],
            cu_seqlens=own.pieces,
            aux_NC=aux_nC,
            last_NH=last_nH,
            top_N=top_N[packed_n],
            rows=tuple(rows.numbers),
            shard=own,
        )

    def _pieces(
        self, rows: _Rows, shares: Sequence[Sequence[int]], states: States, own: ContextShard
    ) -> Iterator[tuple[_Where, _Piece]]:
        """What each target says of this rank's positions. All ranks of the group go through the same messages in the
        same order: from each target's first rank to all that have not run it."""
        context = self.context
        tp_size = min(self.tp_size, context.size)
        place_of = {number: at for at, number in enumerate(rows.numbers)}
        for target, share in enumerate(shares):
            if not share:
                continue
            sequences = [place_of[number] for number in share]
            ranks = range(target * tp_size, (target + 1) * tp_size)
            mine = _where(rows, sequences, own)
            if context.rank not in ranks:
                piece = self._empty(mine, judged=rows.judged)
                self._each(dist.recv, piece, group_src=ranks.start)
                yield mine, piece
                continue
            said = self._said(rows, sequences, states)
            if context.rank == ranks.start:
                for other in (rank for rank in range(context.size) if rank not in ranks):
                    shard = context.deal_to(other, rows.cu_seqlens, rows.loss_mask_N)
                    self._each(dist.send, self._cut(said, _where(rows, sequences, shard)), group_dst=other)
            yield mine, self._cut(said, mine)

    def _said(self, rows: _Rows, sequences: Sequence[int], states: States) -> _Piece:
        """What the target says of all positions of its rows."""
        device = self.target.device
        row_P = _row_positions(rows, sequences)
        last_PH = torch.cat([last for _, last in states])
        mask_P = rows.loss_mask_N[row_P]
        bounds = accumulate((rows.cu_seqlens[at + 1] - rows.cu_seqlens[at] for at in sequences), initial=0)
        begins = list(bounds)
        where = torch.cat([b + teacher_positions(mask_P[b:e]) for b, e in zip(begins, begins[1:], strict=False)])
        where = to_device(where, device)
        top_P = torch.full((len(row_P),), -1, dtype=torch.long, device=device)
        judged_2P = torch.zeros(2 if rows.judged else 0, len(row_P), device=device)
        if rows.judged:
            following = to_device(rows.token_ids_N[row_P].roll(-1), device)  # where no token follows, nothing is judged
            top_P[where], judged_2R = self.target.head.judge(last_PH[where], following[where])
            judged_2P[:, where] = judged_2R.float()
        else:
            top_P[where] = self.target.head.top_tokens(last_PH[where])
        return _Piece(torch.cat([aux for aux, _ in states]), last_PH, top_P, judged_2P)

    def _cut(self, said: _Piece, where: _Where) -> _Piece:
        device = self.target.device
        dtype = self.target.embedding_VH.dtype
        aux_MC = said.aux_MC[to_device(where.aux_M, device)].to(dtype)
        return _Piece(aux_MC, said.last_nH[to_device(where.last_n, device)].to(dtype), said.top_P, said.judged_2P)

    def _empty(self, where: _Where, *, judged: bool) -> _Piece:
        """Room for a piece."""
        like = self.target.embedding_VH
        hidden = like.shape[1]
        aux_MC = like.new_empty(len(where.aux_M), hidden * len(self.target.aux_layers))
        top_P = like.new_empty(len(where.row_P), dtype=torch.long)
        judged_2P = like.new_empty(2 if judged else 0, len(where.row_P), dtype=torch.float32)
        return _Piece(aux_MC, like.new_empty(len(where.last_n), hidden), top_P, judged_2P)

    def _each(self, move: Callable[..., Any], piece: _Piece, **rank: int) -> None:
        with self.context.ranks.waiting():
            for tensor in piece.tensors:
                if tensor.numel():
                    move(tensor.contiguous(), group=self.context.group, **rank)


def _row_positions(rows: _Rows, sequences: Sequence[int]) -> Tensor:
    return torch.cat([torch.arange(rows.cu_seqlens[at], rows.cu_seqlens[at + 1]) for at in sequences])


def _where(rows: _Rows, sequences: Sequence[int], shard: ContextShard) -> _Where:
    """Where the states of these sequences stand for the rank of a shard."""
    row_P = _row_positions(rows, sequences)
    place_N = torch.full((len(rows.token_ids_N),), -1)
    place_N[row_P] = torch.arange(len(row_P))
    place_n = place_N[shard.packed_n]
    last_at_n = (place_n >= 0).nonzero()[:, 0]
    aux_at_M = shard.own_M[place_n[shard.own_M] >= 0]
    return _Where(row_P, place_n[aux_at_M], aux_at_M, place_n[last_at_n], last_at_n)


def dealt(source: OnlineSource, context: ContextGroup) -> DealtSource:
    """The same source for a rank that shares every batch with others."""
    shared = DealtSource(source.target, source.rows, context)
    shared.meter = source.meter
    return shared


def own_batch(source: BatchSource, rows_by_rank: RowsByRank, rank: int) -> TargetBatch | None:
    """A process's part of a batch; None where it has none. All must ask for theirs: they may share the target."""
    if isinstance(source, DealtSource | SharedSource):
        return source.own_batch(rows_by_rank, rank)
    rows = rows_by_rank[rank]
    return source.batch(rows) if rows else None
