"""One target over several processes: the first one works, the others run its layers with it and know nothing else.

So whatever uses a target is written for one process. The first process announces every load and every batch; the
others (``follow``) do the same with the target, and drop the states.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eagle3cli.backends.logits import Head
from eagle3cli.backends.target import LiveTarget, States, Tokens
from eagle3cli.errors import UsageError
from eagle3cli.runtime.ranks import Ranks, joined
from eagle3cli.runtime.stop import catch_stop
from eagle3cli.settings.tables import Target

Load = Callable[[Target, tuple[int, ...]], LiveTarget]


@dataclass(frozen=True)
class Led:
    """A target whose other parts are in other processes."""

    inner: LiveTarget

    @property
    def path(self) -> str:
        """The folder or hub id it was loaded from."""
        return self.inner.path

    @property
    def aux_layers(self) -> tuple[int, ...]:
        """The layers whose outputs are captured."""
        return self.inner.aux_layers

    @property
    def embedding_VH(self) -> Tensor:
        """Weight of the input embedding, ``[V, H]``."""
        return self.inner.embedding_VH

    @property
    def device(self) -> torch.device:
        """Where it leaves states."""
        return self.inner.device

    @property
    def head(self) -> Head:
        """From last hidden states to logits."""
        return self.inner.head

    def capture(self, sequences: Sequence[Tokens]) -> States:
        """States of each sequence, made together with the other processes."""
        _send(("capture", [np.asarray(ids, dtype=np.int32) for ids in sequences]))
        return self.inner.capture(sequences)


@contextmanager
def together(target: Target, load: Load, *, timeout: float | None = None) -> Iterator[Ranks | None]:
    """The processes that share the work of a command; None in one that is there for its part of the target alone: its
    work is over when the block begins.

    After ``timeout`` seconds without a sign of one of them all end. Raises UsageError where there are not as many
    processes as ``tp_size``.
    """
    size = target.tp_size
    with joined(timeout) as ranks:
        if size == 1:
            yield ranks
            return
        if ranks.count != size:
            fix = f"start them with --gpus {size}, or torchrun --nproc-per-node {size} -m eagle3cli ..."
            raise UsageError(f"needs {size} processes; there are {ranks.count}", where="--tp-size", fix=fix)
        if not ranks.first:
            with catch_stop():  # the first process is told, too, and ends the work
                _follow(load)
            yield None
            return
        try:
            yield Ranks()
        except BaseException:
            with suppress(RuntimeError):  # the others may be gone; what happened here is what is told
                _send(None)
            raise
        _send(None)


@contextmanager
def alone(target: Target, load: Load) -> Iterator[bool]:
    """As :func:`together`, for work that one process does: whether this is the one that does it."""
    with together(target, load) as ranks:
        if ranks is not None and ranks.count > 1:
            fix = f"start one process, or give --tp-size {ranks.count} to spread the target over these"
            raise UsageError(f"{ranks.count} processes would all do the same work", where="WORLD_SIZE", fix=fix)
        yield ranks is not None


def load_led(target: Target, aux_layers: tuple[int, ...], load: Load) -> LiveTarget:
    """Load the target in all processes of :func:`together`."""
    _send(("load", target, aux_layers))
    return Led(load(target, aux_layers))


def _follow(load: Load) -> None:
    """Do with the target what the first process does, until it ends."""
    target: LiveTarget | None = None
    while (order := _receive()) is not None:
        if order[0] == "load":
            target = load(*order[1:])
        else:
            assert target is not None, "a batch before its target"
            target.capture(order[1])


def _send(order: Any) -> None:
    import torch.distributed as dist

    dist.broadcast_object_list([order], src=0)


def _receive() -> Any:
    import torch.distributed as dist

    box: list[Any] = [None]
    dist.broadcast_object_list(box, src=0)
    return box[0]
