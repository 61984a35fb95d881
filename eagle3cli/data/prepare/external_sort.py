"""Many small records of one kind, in memory while they are few and in a file beyond; also sorted, in bounded memory.

What `prepare` and `merge` know about each row (where it stands, hashes of what it says) is kept here, so that the
number of rows costs disk and not memory.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

Block = npt.NDArray[Any]
"""Records in a structured array, one dimension."""

MEMORY = 32 << 20
"""Bytes of records that are held before they go to the file."""


class Records:
    """Records of ``dtype``, in the order in which they were added; the file lives in ``folder``, without a name.

    Example::

        rows = Records(np.dtype([("key", "u8"), ("row", "u8")]), folder)
        rows.append(7, 0)
        for block in rows.sorted_by("key"):
            print(block["row"])
    """

    def __init__(self, dtype: np.dtype[Any], folder: Path, *, memory: int = MEMORY) -> None:
        self.dtype, self.folder = dtype, folder
        self._most = max(1, memory // dtype.itemsize)
        self._held = np.empty(min(1024, self._most), dtype)
        self._count = self._stored = 0
        self._file: IO[bytes] | None = None

    def __len__(self) -> int:
        return self._stored + self._count

    def append(self, *values: int | float) -> None:
        """Add one record."""
        if self._count == len(self._held):
            self._make_room()
        self._held[self._count] = values
        self._count += 1

    def extend(self, block: Block) -> None:
        """Add records; their fields are taken by name."""
        for start in range(0, len(block), self._most):
            part = block[start : start + self._most]
            while self._count + len(part) > len(self._held):
                self._make_room()
            for name in self.dtype.names or ():
                self._held[name][self._count : self._count + len(part)] = part[name]
            self._count += len(part)

    def __getitem__(self, number: int) -> Any:
        """One record by its number from 0."""
        if number >= self._stored:
            return self._held[: self._count][number - self._stored]
        return self._read(number, 1)[0]

    def blocks(self, start: int = 0, end: int | None = None) -> Iterator[Block]:
        """Records ``start`` to ``end - 1`` in order, all unless given."""
        end = len(self) if end is None else end
        for at in range(start, min(end, self._stored), self._most):
            yield self._read(at, min(self._most, min(end, self._stored) - at))
        if end > max(start, self._stored):
            yield self._held[max(0, start - self._stored) : end - self._stored].copy()

    def sorted_by(self, key: str) -> Iterator[Block]:
        """All records in ascending order of an unsigned field; records with equal keys keep their order."""
        if not self._stored:
            if self._count:
                held = self._held[: self._count]
                yield held[np.argsort(held[key], kind="stable")]
            return
        runs, sizes = Records(self.dtype, self.folder, memory=self.dtype.itemsize), []
        try:
            for block in self.blocks():
                runs._store(block[np.argsort(block[key], kind="stable")])
                sizes.append(len(block))
            yield from _merged(runs, sizes, key, max(1, self._most // len(sizes)))
        finally:
            runs.close()

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Give the file back."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _make_room(self) -> None:
        if len(self._held) < self._most:
            larger = np.empty(min(self._most, 4 * len(self._held)), self.dtype)
            larger[: self._count] = self._held[: self._count]
            self._held = larger
        else:
            self._store(self._held[: self._count])
            self._count = 0

    def _store(self, block: Block) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=self.folder, buffering=0)  # noqa: SIM115 (closed by close)
        data, at = memoryview(block.tobytes()), self._stored * self.dtype.itemsize
        while data:
            written = os.pwrite(self._file.fileno(), data, at)
            data, at = data[written:], at + written
        self._stored += len(block)

    def _read(self, start: int, count: int) -> Block:
        assert self._file is not None
        size = self.dtype.itemsize
        data = bytearray()
        while len(data) < count * size:
            part = os.pread(self._file.fileno(), count * size - len(data), start * size + len(data))
            if not part:
                raise OSError("the temporary file of records was cut")
            data += part
        return np.frombuffer(data, self.dtype)


def _merged(runs: Records, sizes: Sequence[int], key: str, size: int) -> Iterator[Block]:
    """Sorted runs, one after the other in ``runs``, as one sorted stream, with ``size`` records of each in memory."""
    ends = np.cumsum(sizes).tolist()
    starts = [end - count for end, count in zip(ends, sizes, strict=True)]
    heads: list[Block] = [np.empty(0, runs.dtype) for _ in sizes]
    while True:
        for i, head in enumerate(heads):
            if not len(head) and starts[i] < ends[i]:
                heads[i] = runs._read(starts[i], min(size, ends[i] - starts[i]))
                starts[i] += len(heads[i])
        left = [i for i, head in enumerate(heads) if len(head)]
        if not left:
            return
        # All that is below the smallest last key can go; of equal keys those of earlier runs come first.
        lowest = min(left, key=lambda i: (heads[i][key][-1], i))
        bound, parts = heads[lowest][key][-1], []
        for i in left:
            count = np.searchsorted(heads[i][key], bound, side="left" if i > lowest else "right")
            parts.append(heads[i][:count])
            heads[i] = heads[i][count:]
        block = np.concatenate(parts)
        yield block[np.argsort(block[key], kind="stable")]


@contextmanager
def work_folder(folder: Path) -> Iterator[Path]:
    """A folder in ``folder`` for what is needed only until a result is whole."""
    work = folder / f".work.tmp-{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
