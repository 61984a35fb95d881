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
        own, kv_heads, width = keys_MKD.shape
        of_all = keys_MKD.new_zeros(shard.world_size * shard.width, 2 * kv_heads, width)
        mine = _part(of_all, dist.get_rank(shard.group), shard)
        mine[:own, :kv_heads] = keys_MKD
        mine[:own, kv_heads:] = values_MKD
        with shard.waiting():
            _all_gather(of_all, shard)
        return of_all[:, :kv_heads].index_select(0, shard.order_S), of_all[:, kv_heads:].index_select(0, shard.order_S)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        shard = ctx.shard
        _, kv_heads, width = grads[0].shape
        # Sums of the ranks' parts in fp32, as one rank alone has them.
        shape = (shard.world_size * shard.width, 2 * kv_heads, width)
        of_all = grads[0].new_zeros(shape, dtype=torch.float32)
        of_all[:, :kv_heads].index_copy_(0, shard.order_S, grads[0].float())
        of_all[:, kv_heads:].index_copy_(0, shard.order_S, grads[1].float())
        with shard.waiting():
            own = _reduce_scatter(of_all, shard)[: len(shard.own_M)].to(grads[0].dtype)
        return own[:, :kv_heads], own[:, kv_heads:], None


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
