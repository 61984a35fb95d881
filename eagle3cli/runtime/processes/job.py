"""A job whose first ranks hold the target while the others train: how the two sides find and reach each other.

Each side has torch's default process group to itself, so that whatever is written for "all processes" (FSDP, tensor
parallelism, checkpoints) needs to know nothing of the other side. Between them there is the store where all have met,
and a group for messages from one rank to another.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from eagle3cli.errors import UsageError
from eagle3cli.settings.tables import Settings

if TYPE_CHECKING:
    from torch import Tensor

FOREVER = timedelta(days=30)
"""One side may be at work for as long as that; a rank that dies or hangs is the watchdog's business."""
TARGET = "target"
DRAFT = "draft"


@dataclass(frozen=True)
class Job:
    """One process of such a job."""

    rank: int
    """Among all."""
    world_size: int
    targets: int
    """Ranks that hold the target: the first ones."""
    store: Any
    groups: dict[str, Any]
    """For messages between two ranks, by the kind of device whose memory they are in."""
    closers: list[Callable[[], None]] = field(default_factory=list)
    """What this process has to end before it does, whatever ends it: threads that wait for the others."""

    @property
    def role(self) -> str:
        """What this process is there for."""
        return role_of(self.rank, self.targets)

    @property
    def drafts(self) -> int:
        """Ranks that train."""
        return self.world_size - self.targets

    def send(self, message: Tensor, rank: int) -> None:
        """Have a tensor in the memory of another rank, which waits for it; the host waits until it may be changed."""
        self._await(self._group(message).send([message], rank, 0), message)

    def receive(self, message: Tensor, rank: int) -> None:
        """Fill a tensor with what another rank sends; the host waits until it is there."""
        self._await(self._group(message).recv([message], rank, 0), message)

    def _group(self, message: Tensor) -> Any:
        return self.groups[message.device.type]

    @staticmethod
    def _await(work: Any, message: Tensor) -> None:
        work.wait()
        if message.device.type == "cuda":  # there it is the stream that waits
            import torch

            torch.cuda.current_stream(message.device).synchronize()

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The first rank that trains runs the block before all others, whatever their role."""
        key = "job/main first"
        if self.rank != self.targets:
            self.store.wait([key], FOREVER)
        yield
        if self.rank == self.targets:
            self.store.set(key, "done")


def role_of(rank: int, targets: int) -> str:
    """What a rank of a job is there for; nothing where all ranks do the same."""
    if not targets:
        return ""
    return TARGET if rank < targets else DRAFT


def check_roles(settings: Settings, world_size: int) -> None:
    """Raise UsageError where the settings split ``world_size`` processes in a way that cannot be."""
    targets = settings.launch.target_gpus
    where = "--target-gpus"
    if targets is None:
        if settings.launch.transfer_encoding != "exact":
            fix = "add --target-gpus N, or leave it out"
            raise UsageError(
                "conflicting-options",
                "states travel only to and from GPUs for the target",
                where="--transfer-encoding",
                fix=fix,
            )
        return
    if settings.train.mode == "offline":
        fix = "leave it out, or use --mode online"
        raise UsageError(
            "conflicting-options", "offline training reads states from disk and runs no target", where=where, fix=fix
        )
    if settings.target.spreads:
        fix = "spread the target over those processes instead: --tp-size"
        raise UsageError(
            "conflicting-options", "--device-map would take the GPUs of the other processes, too", where=where, fix=fix
        )
    check_split(targets, world_size, settings.target.tp_size)


def check_split(targets: int, world_size: int, tp_size: int) -> None:
    """Raise UsageError where ``targets`` ranks of ``world_size`` cannot hold targets of ``tp_size`` ranks each."""
    where = "--target-gpus"
    if targets >= world_size:
        what = f"{targets} of {world_size} processes are to hold the target: none is left to train the draft"
        if world_size == 1:
            what = f"needs at least {targets + 1} processes: {targets} for the target, the others for the draft"
        more = f"--gpus {targets + 1}, or torchrun --nproc-per-node {targets + 1} -m eagle3cli train ..."
        fewer = "" if world_size < 2 or world_size <= tp_size else f"use --target-gpus {tp_size}, or "
        raise UsageError("process-count", what, where=where, fix=f"{fewer}start more: {more}")
    if targets % tp_size:
        whole = targets // tp_size * tp_size or tp_size
        what = f"{targets} is no multiple of --tp-size {tp_size}, the processes of one target"
        raise UsageError("process-count", what, where=where, fix=f"use --target-gpus {whole}")


@contextmanager
def as_world(rank: int, world_size: int) -> Iterator[None]:
    """Within the block the environment speaks of a role's ranks alone: transformers reads it."""
    names = {"RANK": str(rank), "WORLD_SIZE": str(world_size)}
    before = {name: os.environ[name] for name in names if name in os.environ}
    os.environ.update(names)
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name)
        os.environ.update(before)


def message_groups(store: Any, rank: int, world_size: int, timeout: timedelta) -> dict[str, Any]:
    """Groups of all ranks that are no default group of torch's; ``timeout`` is that of a message between GPUs."""
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore

    groups: dict[str, Any] = {"cpu": dist.ProcessGroupGloo(PrefixStore("gloo", store), rank, world_size, FOREVER)}
    if torch.cuda.is_available():
        options = dist.ProcessGroupNCCL.Options()
        options._timeout = timeout
        groups["cuda"] = dist.ProcessGroupNCCL(PrefixStore("nccl", store), rank, world_size, options)
    return groups
