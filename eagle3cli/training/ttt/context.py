"""Step-0 keys and values of all ranks that share a sequence: gathered once, and their gradients given back once.

Own keys of later steps never leave their rank: a position sees those that it made itself, and no others.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from eagle3cli.backends.batches.context import ContextShard
from eagle3cli.training.ttt.attention import KeyValue


def gather_keys(own: KeyValue, shard: ContextShard | None) -> KeyValue:
    """Keys and values ``[S, K, D]`` of all positions of the packed batch, from those ``[M, K, D]`` of this rank.

    All ranks of the group must call it, as often and in the same order, with queries that see them or without.
    """
    if shard is None:
        return own
    keys_SKD, values_SKD = _GatherContext.apply(*own, shard)  # type: ignore[no-untyped-call]
    return keys_SKD, values_SKD


class _GatherContext(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, keys_MKD: Tensor, values_MKD: Tensor, shard: ContextShard) -> KeyValue:
        ctx.shard = shard
        ctx.shapes = keys_MKD.shape[1:], values_MKD.shape[1:]
        keys, values = (states.flatten(1) for states in (keys_MKD, values_MKD))
        own, width = keys.shape
        of_all = keys.new_zeros(shard.world_size * shard.width, width + values.shape[1])
        mine = _part(of_all, dist.get_rank(shard.group), shard)
        mine[:own, :width] = keys
        mine[:own, width:] = values
        with shard.waiting():
            _all_gather(of_all, shard)
        keys_SKD, values_SKD = (
            part.index_select(0, shard.order_S).unflatten(1, shape)
            for part, shape in zip((of_all[:, :width], of_all[:, width:]), ctx.shapes, strict=True)
        )
        return keys_SKD, values_SKD

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        shard = ctx.shard
        keys, values = (grad.flatten(1) for grad in grads)
        width = keys.shape[1]
        # Sums of the ranks' parts in fp32, as one rank alone has them.
        shape = (shard.world_size * shard.width, width + values.shape[1])
        of_all = keys.new_zeros(shape, dtype=torch.float32)
        of_all[:, :width].index_copy_(0, shard.order_S, keys.float())
        of_all[:, width:].index_copy_(0, shard.order_S, values.float())
        with shard.waiting():
            own = _reduce_scatter(of_all, shard)[: len(shard.own_M)].to(keys.dtype)
        of_keys, of_values = ctx.shapes
        return own[:, :width].unflatten(1, of_keys), own[:, width:].unflatten(1, of_values), None


def _part(of_all: Tensor, rank: int, shard: ContextShard) -> Tensor:
    return of_all[rank * shard.width : (rank + 1) * shard.width]


def _all_gather(of_all: Tensor, shard: ContextShard) -> None:
    """Fill in what each rank has put into its part."""
    if of_all.is_cuda:
        dist.all_gather_into_tensor(of_all, _part(of_all, dist.get_rank(shard.group), shard), group=shard.group)
        return
    for rank in range(shard.world_size):  # in place: gloo gathers into a copy of it all
        dist.broadcast(_part(of_all, rank, shard), group=shard.group, group_src=rank)


def _reduce_scatter(of_all: Tensor, shard: ContextShard) -> Tensor:
    """The sum of this rank's part over all ranks; overwrites the other parts."""
    own = _part(of_all, dist.get_rank(shard.group), shard)
    if of_all.is_cuda:
        total = torch.empty_like(own)
        dist.reduce_scatter_tensor(total, of_all, group=shard.group)
        return total
    for rank in range(shard.world_size):  # in place: gloo scatters what it has summed in a copy of it all
        dist.reduce(_part(of_all, rank, shard), group=shard.group, group_dst=rank)
    return own
