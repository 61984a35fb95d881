"""Reads the next batches of a store while the draft trains on the present one.

The order of training is a shuffle over all rows; the disk is read in its own order: the rows of many batches to come
are read together, sorted by their place. So a spinning disk's head goes one way, a network file system has several
requests at once, and which rows meet in a batch stays as random as it was.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from eagle3cli.backends.batches.batch import BatchSource, TargetBatch
from eagle3cli.backends.batches.store import HostBatch, StoreSource
from eagle3cli.data.hidden_states.rows import PackedRow

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

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of every row."""
        return self.source.lengths

    def batch(self, rows: Sequence[int]) -> TargetBatch:
        """Read these rows, or take them where they were read ahead."""
        self._fill()
        key = tuple(rows)
        if all(ahead.rows != key for ahead in self._queue):
            return self.source.batch(rows)
        while (ahead := self._queue.popleft()).rows != key:
            pass
        host = ahead.host.result()
        self._fill()
        return self.source.decoded(host)

    def _fill(self) -> None:
        """Begin to read the next batches once half of the window is used up."""
        waiting = sum(ahead.bytes for ahead in self._queue)
        if self._queue and (2 * waiting > self.window_bytes or 2 * len(self._queue) > WINDOW_BATCHES):
            return
        taken: list[tuple[int, ...]] = []
        size = self.source.stores.size
        while not taken or (waiting < self.window_bytes and len(self._queue) + len(taken) < WINDOW_BATCHES):
            rows = next(self._upcoming, None)
            if rows is None:
                break
            taken.append(tuple(rows))
            waiting += sum(map(size, rows))
        in_disk_order = sorted({row for rows in taken for row in rows})
        reads = {row: self._readers.submit(self.source.stores.packed, row) for row in in_disk_order}
        for rows in taken:
            host = self._joiner.submit(self._joined, rows, [reads[row] for row in rows])
            self._queue.append(_Ahead(rows, sum(map(size, rows)), host))

    def _joined(self, rows: tuple[int, ...], packed: list[Future[PackedRow]]) -> HostBatch:
        host = self.source.joined(rows, [row.result() for row in packed])
        return host.pinned() if self.source.device.type == "cuda" else host
