"""Batches whose states come from disk, in the form that the live target gives them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from eagle3cli.backends.batches.batch import TargetBatch
from eagle3cli.backends.batches.context import ContextGroup, ContextShard
from eagle3cli.backends.target.on_policy import OnPolicyMeter
from eagle3cli.data.hidden_states.rows import PackedRow, teacher_positions
from eagle3cli.data.hidden_states.store import Store, Stores
from eagle3cli.runtime.devices import pages

Planes = tuple[Tensor, ...]
Deal = Callable[[tuple[int, ...], Tensor], ContextShard]
"""From the bounds of a batch's sequences and their loss mask ``[N]`` to a rank's part of them."""


@dataclass(frozen=True)
class Part:
    """The encoded states of those rows of a batch that come from one store."""

    store: int
    aux: Planes
    aux_at_U: Tensor
    """Packed positions of the auxiliary states."""
    last: Planes
    last_at_R: Tensor
    """Packed positions of the last states."""

    def moved(self, move: Callable[[Tensor], Tensor]) -> Part:
        """The same with every tensor moved."""
        aux, last = (tuple(map(move, planes)) for planes in (self.aux, self.last))
        return Part(self.store, aux, move(self.aux_at_U), last, move(self.last_at_R))


@dataclass(frozen=True)
class HostBatch:
    """Some rows side by side in the computer's memory, their states still encoded: what goes to the device."""

    token_ids_N: Tensor
    """int64."""
    loss_mask_N: Tensor
    """bool."""
    top_N: Tensor
    """int64."""
    cu_seqlens: tuple[int, ...]
    parts: tuple[Part, ...]
    rows: tuple[int, ...]
    shard: ContextShard | None = None

    def moved(self, move: Callable[[Tensor], Tensor]) -> HostBatch:
        """The same with every tensor moved."""
        tokens = move(self.token_ids_N)
        mask = move(self.loss_mask_N)
        top = move(self.top_N)
        parts = tuple(part.moved(move) for part in self.parts)
        return HostBatch(tokens, mask, top, self.cu_seqlens, parts, self.rows, self.shard)

    def pinned(self) -> HostBatch:
        """The same in memory that a GPU reads by itself."""
        return self.moved(lambda tensor: tensor.pin_memory())


class StoreSource:
    """A BatchSource over one or several hidden-state stores; encoded states are decoded on the device.

    ``dtype`` of the states: as a live target's by default, float32 on a CPU and bfloat16 on a GPU.
    """

    def __init__(
        self, stores: Stores | Store, *, device: torch.device | None = None, dtype: torch.dtype | None = None
    ) -> None:
        self.stores = stores if isinstance(stores, Stores) else Stores([stores])
        self.device = device or torch.device("cpu")
        self.dtype = dtype or (torch.float32 if self.device.type == "cpu" else torch.bfloat16)
        self._codecs = [codec.to(self.device) for codec in self.stores.codecs]
        self.meter: OnPolicyMeter | None = None
        """Sees, where there is one, whether the replies are the target's own."""
        self.deal: Deal | None = None
        """Deals the sequences of a batch to several ranks, of which this one reads its part."""

    def dealt(self, context: ContextGroup) -> StoreSource:
        """The same store, with this rank's part of every batch."""
        source = StoreSource(self.stores, device=self.device, dtype=self.dtype)
        source.meter = self.meter
        source.deal = context.deal
        return source

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of every row."""
        return self.stores.lengths

    def batch(self, rows: Sequence[int]) -> TargetBatch:
        """Read these rows; positions whose states nobody reads are zero."""
        return self.decoded(self.joined(rows, [self.stores.packed(row) for row in rows]))

    def joined(self, rows: Sequence[int], packed: Sequence[PackedRow]) -> HostBatch:
        """Put rows side by side and leave their states encoded."""
        cu_seqlens = tuple(accumulate((len(row.token_ids_S) for row in packed), initial=0))
        masks = [row.loss_mask_S.bool() for row in packed]
        aux_at = [at + torch.arange(len(row.aux[0])) for at, row in zip(cu_seqlens, packed, strict=False)]
        last_at = [at + teacher_positions(mask) for at, mask in zip(cu_seqlens, masks, strict=False)]
        top_N = torch.full((cu_seqlens[-1],), -1, dtype=torch.long)
        top_N[torch.cat(last_at)] = torch.cat([row.top_R for row in packed]).long()
        token_ids_N = torch.cat([row.token_ids_S for row in packed]).long()
        loss_mask_N = torch.cat(masks)
        if self.meter is not None and self.meter.wants(rows):
            self.meter.add(rows, token_ids_N, loss_mask_N, cu_seqlens, top_N)
        aux = [row.aux for row in packed]
        last = [row.last for row in packed]
        shard = None if self.deal is None else self.deal(cu_seqlens, loss_mask_N)
        if shard is not None:
            token_ids_N, loss_mask_N, top_N = (x[shard.packed_n] for x in (token_ids_N, loss_mask_N, top_N))
            aux, aux_at = _held(aux, aux_at, shard.packed_n[shard.own_M], shard.own_M, cu_seqlens)
            last, last_at = _held(last, last_at, shard.packed_n, torch.arange(len(shard.packed_n)), cu_seqlens)
            cu_seqlens = shard.pieces
        stores = [self.stores.at(row)[0] for row in rows]
        parts = []
        for store in sorted(set(stores)):
            own = [i for i, other in enumerate(stores) if other == store]
            parts.append(
                Part(
                    store=store,
                    aux=_joined([aux[i] for i in own]),
                    aux_at_U=torch.cat([aux_at[i] for i in own]),
                    last=_joined([last[i] for i in own]),
                    last_at_R=torch.cat([last_at[i] for i in own]),
                )
            )
        return HostBatch(token_ids_N, loss_mask_N, top_N, cu_seqlens, tuple(parts), tuple(rows), shard)

    def decoded(self, host: HostBatch) -> TargetBatch:
        """Bring a batch to the device and decode it there."""
        batch = host.moved(lambda tensor: tensor.to(self.device, non_blocking=True))
        meta = self.stores.meta
        tokens = len(host.token_ids_N)
        aux_NC = torch.zeros(tokens, meta.aux_width, dtype=self.dtype, device=self.device)
        last_NH = torch.zeros(tokens, meta.hidden_size, dtype=self.dtype, device=self.device)
        for part in batch.parts:
            codec = self._codecs[part.store]
            aux_NC.index_copy_(0, part.aux_at_U, codec.aux.decode(part.aux).to(self.dtype))
            last_NH.index_copy_(0, part.last_at_R, codec.last.decode(part.last).to(self.dtype))
        return TargetBatch(
            token_ids_N=batch.token_ids_N,
            loss_mask_N=host.loss_mask_N,
            cu_seqlens=batch.cu_seqlens,
            aux_NC=aux_NC,
            last_NH=last_NH,
            top_N=batch.top_N,
            rows=batch.rows,
            top_host_N=host.top_N,
            shard=host.shard,
        )


def _held(
    states: Sequence[Planes], at: Sequence[Tensor], packed_n: Tensor, place_n: Tensor, cu_seqlens: tuple[int, ...]
) -> tuple[list[Planes], list[Tensor]]:
    """Of each row's states, which stand at packed positions ``at``, those at ``packed_n``, and their places there.

    Row by row, before they are put side by side: a rank never has the states of the others in memory.
    """
    kept_states: list[Planes] = []
    kept_at: list[Tensor] = []
    for planes, at_U, (begin, end) in zip(states, at, pairwise(cu_seqlens), strict=True):
        index_S = torch.full((end - begin,), -1)
        index_S[at_U - begin] = torch.arange(len(at_U))
        here = (packed_n >= begin) & (packed_n < end)
        index_n = index_S[packed_n[here] - begin]
        found = index_n >= 0
        kept_states.append(tuple(_rows(plane, index_n[found]) for plane in planes))
        kept_at.append(place_n[here][found])
    return kept_states, kept_at


def _rows(plane: Tensor, index_n: Tensor) -> Tensor:
    """Rows of a plane, as bytes: not every type of encoded states can be indexed."""
    rows = _room(len(index_n), plane)
    torch.index_select(plane.view(torch.uint8), 0, index_n, out=rows.view(torch.uint8))
    return rows


def _joined(planes: Sequence[Planes]) -> Planes:
    return tuple(map(_side_by_side, zip(*planes, strict=True)))


def _side_by_side(rows: Sequence[Tensor]) -> Tensor:
    if len(rows) == 1:
        return rows[0]
    joined = _room(sum(map(len, rows)), rows[0])
    torch.cat([row.view(torch.uint8) for row in rows], out=joined.view(torch.uint8))
    return joined


def _room(length: int, plane: Tensor) -> Tensor:
    """Room for so many rows like a plane's, outside the heap of the thread that fills it."""
    width = plane.shape[1]
    return torch.from_numpy(pages(length * width * plane.dtype.itemsize)).view(plane.dtype).view(length, width)
