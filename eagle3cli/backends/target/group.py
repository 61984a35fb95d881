"""One target over several processes.

In a command, the first process works, and the others run the target's layers with it and know nothing else: so
whatever uses a target is written for one process. The first process announces every load and every batch; the others
do the same with the target, and drop the states. In training every process of a group knows which rows the others have,
and all of them run the target together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import numpy as np
import torch.distributed as dist

from eagle3cli.backends.target.target import LiveTarget, ProcessTarget, States, Tokens, refuse_images
from eagle3cli.errors import UsageError
from eagle3cli.runtime.distributed import COLLECTIVE_TIMEOUT, Ranks, init_distributed
from eagle3cli.runtime.stop import catch_stop
from eagle3cli.settings.models import TargetSettings

TargetLoader = Callable[[TargetSettings, tuple[int, ...]], LiveTarget]


class TensorParallelTarget(ProcessTarget):
    """A target whose other parts are in processes that follow this one."""

    def __init__(self, inner: LiveTarget, size: int) -> None:
        super().__init__(inner)
        self.size = size

    def capture(self, sequences: Sequence[Tokens]) -> States:
        """States of each sequence, made together with the other processes."""
        refuse_images(sequences, "a target over several processes")
        _send(("capture", [np.asarray(ids, dtype=np.int32) for ids in sequences]), self.size)
        return self.inner.capture(sequences)


class SharedTarget(ProcessTarget):
    """A target in shards on the processes of a group, those of neighbouring ranks; they must all run it together."""

    def __init__(self, inner: LiveTarget, ranks: Ranks, size: int) -> None:
        super().__init__(inner)
        self.ranks = ranks
        self.size = size

    def capture(self, sequences: Sequence[Tokens]) -> States:
        """States of sequences that all processes of the group ask for."""
        refuse_images(sequences, "a target over several processes")
        with self.ranks.waiting():
            return self.inner.capture(sequences)

    def capture_parts(self, parts: Sequence[Sequence[Tokens]]) -> States:
        """States of this process's sequences, where every process of the group gives those of them all."""
        states = self.capture([ids for part in parts for ids in part]) if any(parts) else []
        own = self.ranks.rank % self.size
        start = sum(len(part) for part in parts[:own])
        return states[start : start + len(parts[own])]

    @property
    def neighbours(self) -> slice:
        """The ranks of the group."""
        first = self.ranks.rank - self.ranks.rank % self.size
        return slice(first, first + self.size)


@contextmanager
def tp_group(target: TargetSettings, load: TargetLoader) -> Iterator[Ranks | None]:
    """The processes that share the work of a command; None in one that is there for its part of a target alone: its
    work is over when the block begins.

    Each ``tp_size`` neighbours have one target, and the first of them works. Raises UsageError where the groups do not
    come out even.
    """
    with init_distributed() as ranks, leading(ranks, target.tp_size, load) as leaders:
        yield leaders


@contextmanager
def leading(ranks: Ranks, size: int, load: TargetLoader) -> Iterator[Ranks | None]:
    """:func:`tp_group` for processes that have met: of each ``size`` neighbours the first gets the ranks of those who
    work; the others follow it."""
    if size == 1:
        yield ranks
        return
    check_groups(size, ranks)
    _, workers, first = _groups(size)
    if ranks.rank != first:
        with catch_stop(patient=True):  # the first process is told, too, and ends the work
            _follow(load, size)
        yield None
        return
    try:
        yield Ranks(ranks.rank // size, ranks.world_size // size, ranks.watchdog, workers, job=ranks.job)
    except BaseException:
        with suppress(RuntimeError):  # the others may be gone; what happened here is what is told
            _send(None, size)
        raise
    _send(None, size)


@contextmanager
def single_tp_group(target: TargetSettings, load: TargetLoader) -> Iterator[bool]:
    """As :func:`tp_group`, for work that one process does: whether this is the one that does it."""
    with tp_group(target, load) as ranks:
        if ranks is not None and ranks.world_size > 1:
            fix = "start one process, or as many as --tp-size says, to spread the target over them"
            raise UsageError(
                "process-count", f"{ranks.world_size} processes would all do the same work", where="WORLD_SIZE", fix=fix
            )
        yield ranks is not None


def load_tensor_parallel(target: TargetSettings, aux_layers: tuple[int, ...], load: TargetLoader) -> LiveTarget:
    """Load the target in all processes of :func:`tp_group`."""
    _send(("load", target, aux_layers), target.tp_size)
    return TensorParallelTarget(load(target, aux_layers), target.tp_size)


def check_groups(size: int, ranks: Ranks) -> None:
    """Raise UsageError where the processes cannot be cut into groups of ``size``."""
    if ranks.world_size % size:
        what = f"{ranks.world_size} processes cannot be cut into groups of {size}"
        fix = f"start a multiple of {size}: --gpus {size}, or torchrun --nproc-per-node {size} -m eagle3cli ..."
        raise UsageError("process-count", what, where="--tp-size", fix=fix)


@cache
def _groups(size: int) -> tuple[Any, Any, int]:
    """This process's group, the group of those that work, and the number of its own group's first; all make all."""
    rank = dist.get_rank()
    world_size = dist.get_world_size()
    own = _neighbours(size)
    workers = dist.new_group(list(range(0, world_size, size)), timeout=COLLECTIVE_TIMEOUT, backend="gloo")
    return own, workers, rank - rank % size


@contextmanager
def world_of_neighbours(size: int) -> Iterator[None]:
    """Within the block the ``size`` neighbours that share a target are all processes that torch knows of.

    For an engine that takes torch's default process group for its own and builds its groups from that. Those it has
    built stay its own after the block. All processes must come here together, unless ``size`` is 1.
    """
    if not dist.is_initialized():
        with _without_agent_store():
            yield
        return
    if dist.get_world_size() == size:
        yield
        return
    group = _neighbours(size)
    world = dist.GroupMember.WORLD
    first = dist.get_rank() - dist.get_rank() % size
    port = os.environ.get("MASTER_PORT")
    dist.GroupMember.WORLD = group
    if port is not None:
        os.environ["MASTER_PORT"] = str(int(port) + first)  # on a CPU SGLang names its shared memory by it
    try:
        yield
    finally:
        dist.GroupMember.WORLD = world
        if port is not None:
            os.environ["MASTER_PORT"] = port


@contextmanager
def _without_agent_store() -> Iterator[None]:
    """Within the block a process that torchrun has started makes a default group of its own alone: with torchrun's
    word it would look for the store of a group at an address where nobody is, for ever."""
    name = "TORCHELASTIC_USE_AGENT_STORE"
    before = os.environ.pop(name, None)
    try:
        yield
    finally:
        if before is not None:
            os.environ[name] = before


@cache
def _neighbours(size: int) -> Any:
    """The group of this process and its neighbours; all processes make all of them, or each its own group of one."""
    rank = dist.get_rank()
    if size == 1:  # with data parallelism one may load its target long before the others, or alone
        return dist.new_group([rank], backend="gloo", use_local_synchronization=True)
    groups = [
        dist.new_group(list(range(first, first + size)), timeout=COLLECTIVE_TIMEOUT, backend="gloo")
        for first in range(0, dist.get_world_size(), size)
    ]
    return groups[rank // size]


def _follow(load: TargetLoader, size: int) -> None:
    """Do with the target what the first process does, until it ends."""
    target: LiveTarget | None = None
    while (request := _receive(size)) is not None:
        if request[0] == "load":
            target = load(*request[1:])
        else:
            assert target is not None, "a batch before its target"
            target.capture(request[1])


def _send(request: Any, size: int) -> None:
    own, _, first = _groups(size)
    dist.broadcast_object_list([request], src=first, group=own)


def _receive(size: int) -> Any:
    own, _, first = _groups(size)
    received: list[Any] = [None]
    dist.broadcast_object_list(received, src=first, group=own)
    return received[0]
