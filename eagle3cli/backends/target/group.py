"""One target over several processes: the first one works, the others run its layers with it and know nothing else.

So whatever uses a target is written for one process. The first process announces every load and every batch; the
others (``follow``) do the same with the target, and drop the states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from eagle3cli.backends.target.target import Behind, LiveTarget, States, Tokens
from eagle3cli.errors import UsageError
from eagle3cli.runtime.distributed import Ranks, init_distributed
from eagle3cli.runtime.stop import catch_stop
from eagle3cli.settings.models import TargetSettings

TargetLoader = Callable[[TargetSettings, tuple[int, ...]], LiveTarget]


@dataclass(frozen=True)
class TensorParallelTarget(Behind):
    """A target whose other parts are in other processes."""

    size: int

    def capture(self, sequences: Sequence[Tokens]) -> States:
        """States of each sequence, made together with the other processes."""
        _send(("capture", [np.asarray(ids, dtype=np.int32) for ids in sequences]), self.size)
        return self.inner.capture(sequences)


@contextmanager
def tp_group(target: TargetSettings, load: TargetLoader) -> Iterator[Ranks | None]:
    """The processes that share the work of a command; None in one that is there for its part of a target alone: its
    work is over when the block begins.

    Each ``tp_size`` neighbours have one target, and the first of them works. Raises UsageError where the groups do not
    come out even.
    """
    size = target.tp_size
    with init_distributed() as ranks:
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
            yield Ranks(ranks.rank // size, ranks.world_size // size, ranks.watchdog, workers)
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
            raise UsageError(f"{ranks.world_size} processes would all do the same work", where="WORLD_SIZE", fix=fix)
        yield ranks is not None


def load_tensor_parallel(target: TargetSettings, aux_layers: tuple[int, ...], load: TargetLoader) -> LiveTarget:
    """TargetLoader the target in all processes of :func:`tp_group`."""
    _send(("load", target, aux_layers), target.tp_size)
    return TensorParallelTarget(load(target, aux_layers), target.tp_size)


def check_groups(size: int, ranks: Ranks) -> None:
    """Raise UsageError where the processes cannot be cut into groups of ``size``."""
    if ranks.world_size % size:
        what = f"{ranks.world_size} processes cannot be cut into groups of {size}"
        fix = f"start a multiple of {size}: --gpus {size}, or torchrun --nproc-per-node {size} -m eagle3cli ..."
        raise UsageError(what, where="--tp-size", fix=fix)


@cache
def _groups(size: int) -> tuple[Any, Any, int]:
    """This process's group, the group of those that work, and the number of its own group's first; all make all."""
    import torch.distributed as dist

    index, count = dist.get_rank(), dist.get_world_size()
    own = [dist.new_group(list(range(at, at + size)), backend="gloo") for at in range(0, count, size)]
    workers = dist.new_group(list(range(0, count, size)), backend="gloo")
    return own[index // size], workers, index - index % size


def _follow(load: TargetLoader, size: int) -> None:
    """Do with the target what the first process does, until it ends."""
    target: LiveTarget | None = None
    while (order := _receive(size)) is not None:
        if order[0] == "load":
            target = load(*order[1:])
        else:
            assert target is not None, "a batch before its target"
            target.capture(order[1])


def _send(order: Any, size: int) -> None:
    import torch.distributed as dist

    own, _, first = _groups(size)
    dist.broadcast_object_list([order], src=first, group=own)


def _receive(size: int) -> Any:
    import torch.distributed as dist

    own, _, first = _groups(size)
    box: list[Any] = [None]
    dist.broadcast_object_list(box, src=first, group=own)
    return box[0]
