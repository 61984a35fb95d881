"""The processes that torchrun started for one command, where each does its own share of the work."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

LONGEST_WAIT = timedelta(days=30)
"""The others may be at work for as long as that; one that dies ends the wait at once."""


@dataclass(frozen=True)
class Ranks:
    """This process among its equals."""

    index: int = 0
    count: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that opens, closes and reports."""
        return self.index == 0

    def wait(self) -> None:
        """Go on once all have come here."""
        if self.count > 1:
            import torch.distributed as dist

            dist.barrier()

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process runs the block before the others do, so that they find what it has made."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()


@contextmanager
def joined(*, tensor_parallel: bool = False) -> Iterator[Ranks]:
    """The ranks that ``WORLD_SIZE`` and ``RANK`` announce, each with its own GPU where there are any; else one.

    ``tensor_parallel``: they exchange tensors on their GPUs, too.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks()
        return
    import torch
    import torch.distributed as dist

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    on_gpus = tensor_parallel and torch.cuda.is_available()
    dist.init_process_group("cpu:gloo,cuda:nccl" if on_gpus else "gloo", timeout=LONGEST_WAIT)
    try:
        yield Ranks(dist.get_rank(), count)
    finally:
        dist.destroy_process_group()
