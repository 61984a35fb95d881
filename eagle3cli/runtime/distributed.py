"""The processes that torchrun or ``--gpus`` started for one command, where each does its own share of the work."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from eagle3cli.errors import Eagle3Error
from eagle3cli.runtime.launch import tell_error
from eagle3cli.runtime.parent import end_with_parent
from eagle3cli.runtime.slurm import as_torchrun
from eagle3cli.runtime.watchdog import Beat, Heart

if TYPE_CHECKING:
    from torch import Tensor

LONGEST_WAIT = timedelta(days=30)
"""The others may be at work for as long as that; one that dies ends the wait at once."""


FIRST_WAIT = 20 * 60.0
"""Seconds in which all have to have started."""


LOST = "look at what ended that one; run the same command again to go on"


class LostAnotherError(Eagle3Error):
    """Another process of the run has ended, and with it this one's work."""


@dataclass(frozen=True)
class Ranks:
    """This process among its equals; every method that talks to the others must be called by all of them."""

    index: int = 0
    count: int = 1
    heart: Heart | None = field(default=None, compare=False)
    group: Any = field(default=None, compare=False)
    """The process group that these are, where there are other processes besides."""

    @property
    def first(self) -> bool:
        """Whether this is the process that opens, closes and reports."""
        return self.index == 0

    @property
    def alone(self) -> bool:
        """Whether there are no others."""
        return self.count == 1

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within the block this process may have to wait for the others."""
        with nullcontext() if self.heart is None else self.heart.waiting():
            yield

    def at(self, place: str) -> None:
        """Tell the others where in the training loop this process is."""
        if self.heart is not None:
            self.heart.at(place)

    def wait(self) -> None:
        """Go on once all have come here."""
        if not self.alone:
            import torch.distributed as dist

            with self.waiting():
                dist.barrier(group=self.group)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first process runs the block before the others do, so that they find what it has made."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def sums(self, values: Sequence[float]) -> list[float]:
        """Sums over the ranks, in double precision and through the hosts' memory."""
        if self.alone:
            return list(values)
        import torch
        import torch.distributed as dist

        found = torch.tensor(values, dtype=torch.float64)
        with self.waiting():
            dist.all_reduce(found, group=self.group)
        total: list[float] = found.tolist()
        return total

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Put the ranks' sum into each of these tensors (of one type), by one message."""
        if self.alone or not tensors:
            return
        import torch
        import torch.distributed as dist

        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with self.waiting():
            dist.all_reduce(flat, group=self.group)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def from_first(self, tensors: Sequence[Tensor]) -> None:
        """Put the first rank's values into each of these tensors."""
        if not self.alone:
            import torch.distributed as dist

            with self.waiting():
                for tensor in tensors:
                    dist.broadcast(tensor.detach(), 0, group=self.group)

    def largest(self, values: Sequence[float]) -> list[float]:
        """The largest of each of these values over the ranks."""
        if self.alone:
            return list(values)
        import torch
        import torch.distributed as dist

        found = torch.tensor(values, dtype=torch.float64)
        with self.waiting():
            dist.all_reduce(found, dist.ReduceOp.MAX, group=self.group)
        total: list[float] = found.tolist()
        return total


ALONE = Ranks()


@contextmanager
def joined(timeout: float | None = None) -> Iterator[Ranks]:
    """The ranks that ``WORLD_SIZE`` and ``RANK`` announce, or SLURM; else one. Each has a GPU where there are any.

    With ``timeout`` (seconds) this process ends when another one is silent, or keeps the others waiting in the
    training loop, for as long. Raises LostAnotherError for what the end of another one looks like from here.
    """
    os.environ.update(as_torchrun(os.environ))
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks()
        return
    import torch
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl"
    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()  # torchrun ends its ranks, unless it is killed itself
    first = timedelta(seconds=timeout or FIRST_WAIT)
    try:
        store, index, count = next(rendezvous("env://", timeout=first))
    except dist.DistError as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        what = f"not all {count} processes met within {first.total_seconds() / 60:g} minutes"
        raise Eagle3Error(what, where=where, fix="see that all are started and reach this address") from error
    store.set_timeout(LONGEST_WAIT)
    dist.init_process_group(backend, store=store, rank=index, world_size=count, timeout=LONGEST_WAIT)
    heart = None
    if timeout is not None:
        beats = PrefixStore("eagle3", store.clone())
        heart = Heart(
            beats,
            index,
            count,
            timeout,
            lambda late, said: _give_up(index, late, said),
            _warn_of if index == 0 else _hush,
        )
        heart.thread.start()
    try:
        yield Ranks(index, count, heart)
    except Exception as error:
        if not _of_another(error):
            raise
        raise LostAnotherError("lost another process of this run, or the way to it", fix=LOST) from error
    finally:
        if heart is not None:
            heart.ended.set()
        dist.destroy_process_group()


def _give_up(rank: int, late: Beat, said: str) -> None:
    """End this process, which waits for one that will not come, and that one too where it is on this machine."""
    if late.host == socket.gethostname():
        with suppress(OSError):
            os.kill(late.process, signal.SIGKILL)  # one that is stopped hears no other signal
    error = Eagle3Error(said, where="--dist-timeout", fix="see what that process does; then run the same command again")
    tell_error(rank, error)
    print(f"error: {error}", file=sys.stderr, flush=True)
    os._exit(error.exit_code)


def _of_another(error: Exception) -> bool:
    """Whether an error is what a rank sees of another one's end."""
    import torch.distributed as dist

    words = ("gloo", "Connection reset", "Connection closed", "NCCL", "Broken pipe")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(w in str(error) for w in words)
    )


def _warn_of(said: str) -> None:
    print(f"warning: {said}", file=sys.stderr, flush=True)


def _hush(said: str) -> None:
    """The first rank has said it."""
