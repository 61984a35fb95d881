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
from eagle3cli.training.timers import Stopwatch
from eagle3cli.training.ttt.model import Forward

SHARD_FROM = 250_000_000
"""Weights from which ``auto`` shards: with masters and moments in fp32 they take 4 GB on every rank."""


@dataclass(frozen=True)
class Spread:
    """The draft's place on the ranks."""

    ranks: Ranks = Ranks()
    shards: FSDPModule | None = None
    """The sharded :class:`Forward`; None where each rank has all weights."""

    @contextmanager
    def of_step(self, clock: Stopwatch) -> Iterator[None]:
        """Backward passes within the block add up on this rank alone; the ranks' sum is made at its end, in one go.

        With shards the end is a pass without rows: ranks may have different numbers of micro batches, or none.

        The sum does not overlap with the last backward pass, because an unrolled draft leaves little to overlap with:
        the layer is used at every depth and ``fc`` below all of them, so their gradients are whole only at the very end
        of the pass. The head's is whole at its beginning. For Llama-3.1-8B (head 31% of the draft, 16k tokens a GPU)
        that would hide 2 ms of a step of 360 on eight H100, and 20 ms of 420 on sixteen over 50 GB/s
        (``throughput.py``) - for a second message, whose place among the others all ranks must keep, those included
        whose last micro batch is empty and has no pass.
        """
        if self.shards is None:
            yield
            return
        self.shards.set_requires_gradient_sync(False)
        self.shards.set_reshard_after_backward(False)
        yield
        self.shards.set_requires_gradient_sync(True)
        self.shards.set_reshard_after_backward(True)
        assert isinstance(self.shards, Forward)
        with clock.part("communication"):
            self.shards.nothing().backward()

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Within the block every rank can read all weights."""
        if self.shards is None:
            yield
            return
        self.shards.unshard()
        try:
            yield
        finally:
            self.shards.reshard()

    def add_up(self, gradients: Sequence[Tensor]) -> None:
        """Make each gradient its sum over the ranks."""
        if self.shards is None:  # else FSDP has done it
            self.ranks.all_reduce(gradients)


def spread_out(forward: Forward, ranks: Ranks, settings: TrainSettings, dtype: torch.dtype) -> Spread:
    """Give every rank the first one's weights, or its shard of them; ``dtype`` is what passes compute in.

    Replicated weights are cast to ``dtype``; shards stay fp32 and are their own masters. Raises UsageError for an
    optimiser that needs whole matrices.
    """
    draft = forward.draft
    if settings.sharding == "fsdp" and settings.optimizer == "muon":
        fix = "use --draft-sharding replicate, or --optimizer adamw"
        raise UsageError("muon needs whole matrices, fsdp cuts them", where="--draft-sharding", fix=fix)
    ranks.broadcast([*draft.parameters(), *draft.buffers()])
    if not uses_fsdp(settings, size(draft), ranks.world_size):
        draft.cast(dtype)
        return Spread(ranks)
    device = draft.fc.weight.device.type
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    mesh = init_device_mesh(device, (ranks.world_size,))
    fully_shard(forward, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    register_fsdp_forward_method(forward, "nothing")
    assert isinstance(forward, FSDPModule)
    forward.set_gradient_divide_factor(1.0)  # sums, not means
    forward.set_force_sum_reduction_for_comms(True)  # gloo has no means; with torch 2.8 it gives sums for them
    return Spread(ranks, forward)


def uses_fsdp(settings: TrainSettings, weights: int, world_size: int) -> bool:
    """Whether the ranks shard a draft of so many ``weights``."""
    how, muon = settings.sharding, settings.optimizer == "muon"
    return world_size > 1 and (how == "fsdp" or (how == "auto" and not muon and weights >= SHARD_FROM))


def size(draft: Draft) -> int:
    """Number of weights."""
    return sum(weight.numel() for weight in draft.parameters())
