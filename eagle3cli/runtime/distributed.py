"""The processes that torchrun or ``--gpus`` started for one command, where each does its own share of the work."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from eagle3cli.errors import Eagle3Error, Stopped
from eagle3cli.runtime.processes.job import FOREVER, Job, as_world, message_groups, role_of
from eagle3cli.runtime.processes.launch import tell_error
from eagle3cli.runtime.processes.lifeline import Lifeline
from eagle3cli.runtime.processes.parent import end_with_parent
from eagle3cli.runtime.processes.slurm import as_torchrun
from eagle3cli.runtime.processes.watchdog import Heartbeat, Watchdog

if TYPE_CHECKING:
    from torch import Tensor

COLLECTIVE_TIMEOUT = FOREVER
"""The others may be at work for as long as that; one that dies ends the wait at once."""

DEVICE_SLACK = 60.0
"""Seconds by which NCCL's time-out is longer than the watchdog's, which knows the rank that is late. NCCL then ends the
process (TORCH_NCCL_ASYNC_ERROR_HANDLING is on in every torch that is allowed) and logs the collective."""

START_TIMEOUT = 20 * 60.0
"""Seconds in which all have to have started."""


LOST = "look at what ended that one; run the same command again to go on"


class LostRankError(Eagle3Error):
    """Another process of the run has ended, and with it this one's work."""


@dataclass(frozen=True)
class Ranks:
    """This process among its equals; every method that talks to the others must be called by all of them."""

    rank: int = 0
    world_size: int = 1
    watchdog: Watchdog | None = field(default=None, compare=False)
    group: Any = field(default=None, compare=False)
    """The process group that these are, where there are other processes besides."""
    host_group: Any = field(default=None, compare=False)
    """The same processes for the hosts' memory, where that is another group: its waits may be long."""
    job: Job | None = field(default=None, compare=False)
    """All processes, where these are those of one role: the target's, or the draft's."""

    @property
    def is_main(self) -> bool:
        """Whether this is the process that opens, closes and reports."""
        return self.rank == 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within the block this process may have to wait for the others."""
        with nullcontext() if self.watchdog is None else self.watchdog.waiting():
            yield

    def at(self, place: str) -> None:
        """Tell the others where in the training loop this process is."""
        if self.watchdog is not None:
            self.watchdog.at(place)

    def barrier(self) -> None:
        """Go on once all have come here."""
        if self.world_size > 1:
            import torch.distributed as dist

            with self.waiting():
                dist.barrier(group=self._host_group)

    @property
    def _host_group(self) -> Any:
        return self.group if self.host_group is None else self.host_group

    @contextmanager
    def main_process_first(self) -> Iterator[None]:
        """The main process runs the block before the others do, so that they find what it has made."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def all_reduce(self, tensors: Sequence[Tensor]) -> None:
        """Put the ranks' sum into each of these tensors (of one type), by one message."""
        if self.world_size == 1 or not tensors:
            return
        import torch
        import torch.distributed as dist

        flat = torch.cat([tensor.flatten() for tensor in tensors])
        with self.waiting():
            dist.all_reduce(flat, group=self.group)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def broadcast(self, tensors: Sequence[Tensor]) -> None:
        """Put the main process's values into each of these tensors."""
        if self.world_size > 1:
            import torch.distributed as dist

            self.barrier()  # a device's own time-out is shorter than some rank may be late
            with self.waiting():
                for tensor in tensors:
                    dist.broadcast(tensor.detach(), 0, group=self.group)

    def all_reduce_sum(self, values: Sequence[float]) -> list[float]:
        """Sums over the ranks, in double precision and through the hosts' memory."""
        return self._all_reduce_host(values, "SUM")

    def all_reduce_max(self, values: Sequence[float]) -> list[float]:
        """The largest of each of these values over the ranks."""
        return self._all_reduce_host(values, "MAX")

    def _all_reduce_host(self, values: Sequence[float], operation: str) -> list[float]:
        if self.world_size == 1:
            return list(values)
        import torch
        import torch.distributed as dist

        reduced = torch.tensor(values, dtype=torch.float64)
        with self.waiting():
            dist.all_reduce(reduced, getattr(dist.ReduceOp, operation), group=self._host_group)
        return [float(value) for value in reduced]


SINGLE_PROCESS = Ranks()


@contextmanager
def init_distributed(timeout: float | None = None, targets: int = 0) -> Iterator[Ranks]:
    """The ranks that ``WORLD_SIZE`` and ``RANK`` announce, or SLURM; else one. Each has a GPU where there are any.

    With ``targets`` the first so many hold the target and the others train: the ranks are those of this one's role.
    With ``timeout`` (seconds) this process ends when another one is silent, or keeps the others waiting in the
    training loop, for as long, or when a message between GPUs takes longer. Raises LostRankError for what the end of
    another one looks like from here.
    """
    os.environ.update(as_torchrun(os.environ))
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield SINGLE_PROCESS
        return
    import torch.distributed as dist
    from torch.distributed.distributed_c10d import PrefixStore

    if "TORCHELASTIC_RUN_ID" in os.environ:
        end_with_parent()  # torchrun ends its ranks, unless it is killed itself
    store, rank, world_size = _rendezvous(world_size, timeout or START_TIMEOUT)
    with ExitStack() as stack:
        watchdog = None
        try:
            if targets:
                ranks = stack.enter_context(_role(store, rank, world_size, targets, timeout))
            else:
                ranks = Ranks(rank, world_size, host_group=_init_process_groups(store, rank, world_size, timeout))
            if timeout is not None:
                watchdog = Watchdog(
                    PrefixStore("eagle3", store.clone()),
                    rank,
                    world_size,
                    timeout,
                    lambda late, message: _give_up(rank, late, message),
                    _warn if rank == targets else lambda message: None,  # the main process has said it
                )
                if targets:
                    watchdog.own.role = role_of(rank, targets)
                watchdog.thread.start()
            ranks = replace(ranks, watchdog=watchdog)
            with _lifeline(ranks):
                yield ranks
        except Exception as error:
            if not _is_lost_rank(error):
                raise
            raise LostRankError(
                "process-died", "lost another process of this run, or the way to it", fix=LOST
            ) from error
        finally:
            if watchdog is not None:
                watchdog.ended.set()
            if dist.is_initialized():
                dist.destroy_process_group()


@contextmanager
def _lifeline(ranks: Ranks) -> Iterator[None]:
    """Within the block a rank of a job that has gone ends this one at once: at the store, where its roles meet, nothing
    tells of it."""
    job = ranks.job
    if job is None:
        yield
        return
    rank = job.rank
    targets = job.targets
    watchdog = ranks.watchdog

    def lost(other: int) -> None:
        place = watchdog.place_of(other) if watchdog is not None else ""
        error = LostRankError(
            "process-died", f"lost rank {other} ({role_of(other, targets)})", where=place or None, fix=LOST
        )
        tell_error(rank, error, lost=True)
        print(f"error [{error.code}]: {error}", file=sys.stderr, flush=True)
        os._exit(error.exit_code)

    lifeline = Lifeline(job.store, rank, job.world_size, lost)
    stopped: Stopped | None = None
    try:
        yield
    except Stopped as error:
        stopped = error
    with ranks.waiting():
        lifeline.let_go()
    if stopped is not None:
        raise stopped


@contextmanager
def _role(store: Any, rank: int, world_size: int, targets: int, timeout: float | None) -> Iterator[Ranks]:
    """The ranks of this process's role, whose default group is theirs alone."""
    from torch.distributed.distributed_c10d import PrefixStore

    limit = COLLECTIVE_TIMEOUT if timeout is None else timedelta(seconds=timeout + DEVICE_SLACK)
    groups = message_groups(PrefixStore("messages", store), rank, world_size, limit)
    job = Job(rank, world_size, targets, PrefixStore("job", store.clone()), groups)
    own = rank if rank < targets else rank - targets
    size = targets if rank < targets else world_size - targets
    _pick_gpu()
    host_group = None
    if size > 1:
        host_group = _init_process_groups(PrefixStore(job.role, store), own, size, timeout)
    try:
        with as_world(own, size):
            yield Ranks(own, size, host_group=host_group, job=job)
    finally:
        for close in job.closers:
            close()


def _rendezvous(world_size: int, timeout: float) -> tuple[Any, int, int]:
    """The store where all processes meet, this one's rank, their number; raises Eagle3Error after ``timeout`` s."""
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    try:
        store, rank, world_size = next(rendezvous("env://", timeout=timedelta(seconds=timeout)))
    except dist.DistError as error:
        where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
        what = f"not all {world_size} processes met within {timeout / 60:g} minutes"
        raise Eagle3Error(
            "process-died", what, where=where, fix="see that all are started and reach this address"
        ) from error
    store.set_timeout(COLLECTIVE_TIMEOUT)
    return store, rank, world_size


def _init_process_groups(store: Any, rank: int, world_size: int, timeout: float | None) -> Any:
    """Make the default group; returns another one for the hosts' memory where that one is of GPUs, else None.

    The watchdog keeps ``timeout`` on the hosts. On GPUs NCCL has to: no thread here sees where a device waits.
    """
    import torch
    import torch.distributed as dist

    where: dict[str, Any] = {"store": store, "rank": rank, "world_size": world_size}
    if not torch.cuda.is_available():
        dist.init_process_group("gloo", timeout=COLLECTIVE_TIMEOUT, **where)
        return None
    _pick_gpu()
    limit = COLLECTIVE_TIMEOUT if timeout is None else timedelta(seconds=timeout + DEVICE_SLACK)
    dist.init_process_group("cpu:gloo,cuda:nccl", timeout=limit, **where)
    return dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)


def _pick_gpu() -> None:
    """Let this process have a GPU of its own, where there are any."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def _give_up(rank: int, late: Heartbeat | None, message: str) -> None:
    """End this process, which waits for one that will not come, and that one too where it is on this machine."""
    if late is not None and late.host == socket.gethostname():
        with suppress(OSError):
            os.kill(late.process, signal.SIGKILL)  # one that is stopped hears no other signal
    look = "see what that process does" if late is not None else "see that the GPUs reach each other (NCCL_DEBUG=INFO)"
    error = Eagle3Error("process-died", message, where="--dist-timeout", fix=f"{look}; then run the same command again")
    tell_error(rank, error)
    print(f"error [{error.code}]: {error}", file=sys.stderr, flush=True)
    os._exit(error.exit_code)


def _is_lost_rank(error: Exception) -> bool:
    """Whether an error is what a rank sees of another one's end."""
    import torch.distributed as dist

    words = ("gloo", "Connection reset", "Connection closed", "NCCL", "Broken pipe")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(w in str(error) for w in words)
    )


def _warn(message: str) -> None:
    print(f"warning: {message}", file=sys.stderr, flush=True)
