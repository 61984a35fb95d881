"""Reads the next batches of a store while the draft trains on the present one, and brings the next to a GPU.

The order of training is a shuffle over all rows; the disk is read in its own order: the rows of many batches to come
are read together, sorted by their place. So a spinning disk's head goes one way, a network file system has several
requests at once, and which rows meet in a batch stays as random as it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import torch

from eagle3cli.backends.batches.batch import BatchSource, TargetBatch
from eagle3cli.backends.batches.store import HostBatch, StoreSource
from eagle3cli.data.hidden_states.rows import PackedRow
from eagle3cli.runtime.devices import SideStream

WINDOW_BYTES = 512_000_000
"""Encoded states that wait in memory, about; at least one batch does."""
WINDOW_BATCHES = 256
THREADS = 4
"""They wait for the disk most of the time."""


def read_ahead(source: BatchSource, upcoming: Iterable[Sequence[int]]) -> BatchSource:
    """``source`` with the ``upcoming`` batches (rows of each, in the order of use) read ahead where it is on disk."""
    return Prefetched(source, upcoming) if isinstance(source, StoreSource) else source


@dataclass(frozen=True)
class _Ahead:
    """A batch on its way."""

    rows: tuple[int, ...]
    bytes: int
    host: Future[HostBatch]


@dataclass(frozen=True)
class _OnDevice:
    """A batch that a GPU copies and decodes beside its work."""

    rows: tuple[int, ...]
    batch: TargetBatch
    done: torch.cuda.Event


class Prefetched:
    """A BatchSource over stores that knows which batches will be asked for; any other batch is read when asked for."""

    def __init__(
        self, source: StoreSource, upcoming: Iterable[Sequence[int]], *, window_bytes: int = WINDOW_BYTES
    ) -> None:
        self.source = source
        self.window_bytes = window_bytes
        self._upcoming: Iterator[Sequence[int]] = iter(upcoming)
        self._queue: deque[_Ahead] = deque()
        self._readers = ThreadPoolExecutor(THREADS, thread_name_prefix="read")
        self._joiner = ThreadPoolExecutor(1, thread_name_prefix="join")
        self._beside = SideStream(source.device) if source.device.type == "cuda" else None
        self._following: _OnDevice | None = None

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of every row."""
        return self.source.lengths

    def batch(self, rows: Sequence[int]) -> TargetBatch:
        """Read these rows, or take them where they were read ahead."""
        self._fill()
        key = tuple(rows)
        following = self._following
        if following is not None and following.rows == key:
            assert self._beside is not None
            self._beside.join(following.done, following.batch.on_device)
            batch = following.batch
        elif any(ahead.rows == key for ahead in self._queue):
            while (ahead := self._queue.popleft()).rows != key:
                pass
            batch = self.source.decoded(ahead.host.result())
        else:
            return self.source.batch(rows)
        self._fill()
        self._begin_following()
        return batch

    def _begin_following(self) -> None:
        """Let a GPU copy and decode the next batch while it works on this one, if the disk has got that far."""
        self._following = None
        if self._beside is None or not self._queue:
            return
        host = self._queue[0].host
        if not host.done() or host.exception() is not None:  # an error is told when the batch's turn comes
            return
        ahead = self._queue.popleft()
        with self._beside.running() as done:
            self._following = _OnDevice(ahead.rows, self.source.decoded(ahead.host.result()), done)

    def _fill(self) -> None:
        """Begin to read the next batches once half of the window is used up."""
        waiting = sum(ahead.bytes for ahead in self._queue)
        if self._queue and (2 * waiting > self.window_bytes or 2 * len(self._queue) > WINDOW_BATCHES):
            return
        taken: list[tuple[int, ...]] = []
        size = self.source.stores.size
        for rows in islice(self._upcoming, WINDOW_BATCHES):  # a rank may have no rows, step after step
            if not rows:
                continue
            taken.append(tuple(rows))
            waiting += sum(map(size, rows))
            if waiting >= self.window_bytes or len(self._queue) + len(taken) >= WINDOW_BATCHES:
                break
        in_disk_order = sorted({row for rows in taken for row in rows})
        reads = {row: self._readers.submit(self.source.stores.packed, row) for row in in_disk_order}
        for rows in taken:
            host = self._joiner.submit(self._joined, rows, [reads[row] for row in rows])
            self._queue.append(_Ahead(rows, sum(map(size, rows)), host))

    def _joined(self, rows: tuple[int, ...], packed: list[Future[PackedRow]]) -> HostBatch:
        host = self.source.joined(rows, [row.result() for row in packed])
        return host.pinned() if self.source.device.type == "cuda" else host
