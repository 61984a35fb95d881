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
    kv_heads = own[0].shape[1]
    joint_SKD: Tensor = _GatherContext.apply(torch.cat(own, 1), shard)  # type: ignore[no-untyped-call]
    return joint_SKD[:, :kv_heads], joint_SKD[:, kv_heads:]


class _GatherContext(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, own_MKD: Tensor, shard: ContextShard) -> Tensor:
        ctx.shard = shard
        padded = own_MKD.new_zeros(shard.width, *own_MKD.shape[1:])
        padded[: len(own_MKD)] = own_MKD
        of_all = own_MKD.new_empty(shard.world_size * shard.width, *own_MKD.shape[1:])
        with shard.waiting():
            dist.all_gather_into_tensor(of_all, padded, group=shard.group)
        return of_all.index_select(0, shard.order_S)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        shard = ctx.shard
        shape = grads[0].shape[1:]
        # Sums of the ranks' parts in fp32, as one rank alone has them.
        of_all = grads[0].new_zeros(shard.world_size * shard.width, *shape, dtype=torch.float32)
        of_all.index_copy_(0, shard.order_S, grads[0].float())
        own = of_all.new_empty(shard.width, *shape)
        with shard.waiting():
            dist.reduce_scatter_tensor(own, of_all, group=shard.group)
        return own[: len(shard.own_M)].to(grads[0].dtype), None
