"""How a draft's weights lie on the ranks: whole on each of them, or in shards (FSDP2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)

from eagle3cli.errors import UsageError
from eagle3cli.models.draft import Draft
from eagle3cli.runtime.distributed import Ranks
from eagle3cli.settings.training import TrainSettings
from eagle3cli.training.timers import Timers
from eagle3cli.training.ttt.model import TTTModel

SHARD_FROM = 250_000_000
"""Weights from which ``auto`` shards: with masters and moments in fp32 they take 4 GB on every rank."""


@dataclass(frozen=True)
class Parallel:
    """The draft's place on the ranks."""

    ranks: Ranks = Ranks()
    shards: FSDPModule | None = None
    """The sharded :class:`TTTModel`; None where each rank has all weights."""

    @contextmanager
    def no_sync(self, timers: Timers) -> Iterator[None]:
        """Backward passes within the block add up on this rank alone; the ranks' sum is made at its end, in one go.

        With shards the end is a pass without rows: ranks may have different numbers of micro batches, or none.

        The sum does not overlap with the last backward pass, because an unrolled draft leaves little to overlap with:
        the layer is used at every step of the unroll and ``fc`` below all of them, so their gradients are whole only
        at the very end of the pass. The head's is whole at its beginning. For Llama-3.1-8B (head 31% of the draft, 16k
        tokens a GPU) that would hide 2 ms of a step of 360 on eight H100, and 20 ms of 420 on sixteen over 50 GB/s
        (``throughput.py``) - for a second message, whose place among the others all ranks must keep, those included
        whose last micro batch is empty and has no pass.
        """
        if self.shards is None:
            yield
            return
        self.shards.set_requires_gradient_sync(False)
        self.shards.set_reshard_after_backward(False)
        with self.ranks.waiting():
            # Begun here, where no rank is ahead, it is not left to whoever has its states first, and runs beside them.
            self.shards.unshard(async_op=True)
        yield
        self.shards.set_requires_gradient_sync(True)
        self.shards.set_reshard_after_backward(True)
        assert isinstance(self.shards, TTTModel)
        with timers.part("communication"), self.ranks.waiting():
            self.shards.zero_loss().backward()

    @contextmanager
    def unsharded(self) -> Iterator[None]:
        """Within the block every rank can read all weights."""
        if self.shards is None:
            yield
            return
        with self.ranks.waiting():
            self.shards.unshard()
        try:
            yield
        finally:
            self.shards.reshard()

    def all_reduce(self, gradients: Sequence[Tensor]) -> None:
        """Make each gradient its sum over the ranks."""
        if self.shards is None:  # else FSDP has done it
            self.ranks.all_reduce(gradients)


def is_sharded(settings: TrainSettings, weights: int, world_size: int) -> bool:
    """Whether the ranks share a draft of so many weights between them, or each has all of it."""
    if world_size == 1 or settings.sharding == "replicate":
        return False
    return settings.sharding == "fsdp" or (settings.optimizer != "muon" and weights >= SHARD_FROM)


def parallelize(model: TTTModel, ranks: Ranks, settings: TrainSettings, dtype: torch.dtype) -> Parallel:
    """Give every rank the main one's weights, or its shard of them; ``dtype`` is what passes compute in.

    Replicated weights are cast to ``dtype``; shards stay fp32 and are their own masters. Raises UsageError for an
    optimizer that needs whole matrices.
    """
    draft = model.draft
    if settings.sharding == "fsdp" and settings.optimizer == "muon":
        fix = "use --draft-sharding replicate, or --optimizer adamw"
        raise UsageError(
            "conflicting-options", "muon needs whole matrices, fsdp cuts them", where="--draft-sharding", fix=fix
        )
    ranks.broadcast([*draft.parameters(), *draft.buffers()])
    if not is_sharded(settings, size(draft), ranks.world_size):
        draft.cast(dtype)
        return Parallel(ranks)
    mesh = init_device_mesh(draft.fc.weight.device.type, (ranks.world_size,))
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    register_fsdp_forward_method(model, "zero_loss")
    assert isinstance(model, FSDPModule)
    model.set_gradient_divide_factor(1.0)  # sums, not means
    model.set_force_sum_reduction_for_comms(True)  # gloo has no means; with torch 2.8 it gives sums for them
    return Parallel(ranks, model)


def size(draft: Draft) -> int:
    """Number of weights."""
    return sum(weight.numel() for weight in draft.parameters())
