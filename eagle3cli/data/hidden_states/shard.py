"""One shard of a hidden-state store: a safetensors file with the bytes of many rows, and a checksum of each.

    rows    uint8   the rows' stretches (``data/hidden_states/rows.py``), one after the other
    checks  uint32  CRC-32 of every stretch

Written at known places in any order, so that nobody holds a shard in memory; read by memory map, a row at a time.
"""

from __future__ import annotations

import errno
import json
import mmap
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b
from itertools import accumulate
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from eagle3cli.errors import DataError
from eagle3cli.runtime.devices import pages
from eagle3cli.runtime.files import writing

HEADER_ALIGNMENT = 64
Entry = dict[str, Any]
"""What a manifest says of a file: ``bytes``, and ``blake2b`` of what no other checksum covers."""


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"shard_{shard:05d}.safetensors"


def shard_header(store_key: str, shard: int, sizes: Sequence[int]) -> bytes:
    """The beginning of a shard's file; tells shards of other stores, and other places in this one, apart."""
    rows = sum(sizes)
    checks = 4 * len(sizes)
    tensors = {
        "__metadata__": {"store": store_key, "shard": str(shard)},
        "rows": {"dtype": "U8", "shape": [rows], "data_offsets": [0, rows]},
        "checks": {"dtype": "U32", "shape": [len(sizes)], "data_offsets": [rows, rows + checks]},
    }
    text = json.dumps(tensors).encode()
    text += b" " * (-(8 + len(text)) % HEADER_ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


FAULT_BYTES = 65536
"""Linux maps so much around the page that a reader touches (``fault_around_bytes``)."""


@dataclass(frozen=True)
class ShardShape:
    """What is known of a shard before any of it is written."""

    header: bytes
    sizes: tuple[int, ...]

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """Place of every row in the file, and of the checksums."""
        return tuple(accumulate(self.sizes, initial=len(self.header)))

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return self.starts[-1] + 4 * len(self.sizes)


@contextmanager
def writing_shard(path: Path, shape: ShardShape) -> Iterator[Callable[[int, Tensor], None]]:
    """A function that puts row i (uint8) in its place; the file is there once the block has ended.

    Its space is taken before the first row. Raises Eagle3Error when the disk is full, ValueError when a row is missing.
    """
    checks = np.zeros(len(shape.sizes), dtype="<u4")
    missing = set(range(len(shape.sizes)))
    with writing(path, "wb") as f:
        reserve(f, shape.bytes)
        write_at(f, 0, shape.header)

        def put(index: int, blob: Tensor) -> None:
            if len(blob) != shape.sizes[index]:
                raise ValueError(f"row {index} of {path.name} has {len(blob)} bytes, not {shape.sizes[index]}")
            data = blob.numpy().data
            write_at(f, shape.starts[index], data)
            checks[index] = zlib.crc32(data)
            missing.discard(index)

        yield put
        if missing:
            raise ValueError(f"{path.name} lacks rows {sorted(missing)[:5]}")
        write_at(f, shape.starts[-1], checks.tobytes())


def reserve(f: IO[bytes], size: int) -> None:
    """Take the space, so that a full disk stops a shard at its beginning; where the file system cannot, its size."""
    try:
        os.posix_fallocate(f.fileno(), 0, size)
    except (OSError, AttributeError) as error:
        if isinstance(error, OSError) and error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
            raise
        f.truncate(size)


def write_at(f: IO[bytes], at: int, data: bytes | memoryview) -> None:
    """Write all of ``data`` at a place of the file."""
    rest = memoryview(data)
    while rest:
        written = os.pwrite(f.fileno(), rest, at)
        at += written
        rest = rest[written:]


class StateShard:
    """An open shard. Raises DataError where the file is not the one that ``shape`` describes."""

    def __init__(self, path: Path, shape: ShardShape) -> None:
        self.path = path
        self.shape = shape
        try:
            with path.open("rb") as f:
                size = os.fstat(f.fileno()).st_size
                if size != shape.bytes:
                    raise DataError("damaged-store", f"{size} bytes, not {shape.bytes}", where=str(path))
                self._map = mmap.mmap(f.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise DataError("damaged-store", f"cannot be read: {error}", where=str(path)) from error
        if self._map[: len(shape.header)] != shape.header:
            raise DataError("damaged-store", "the header is damaged, or of another store", where=str(path))
        self._bytes = np.frombuffer(self._map, dtype=np.uint8)
        self._checks = self._bytes[self.shape.starts[-1] :].view("<u4")

    @property
    def entry(self) -> Entry:
        """Size, and hash of header and checksums: together with the checksums it covers every byte."""
        digest = blake2b(self.shape.header, digest_size=16)
        digest.update(self._checks.tobytes())
        return {"bytes": self.shape.bytes, "blake2b": digest.hexdigest()}

    def place(self, index: int) -> tuple[int, int]:
        """First byte of a row in the file, and the one after its last."""
        return self.shape.starts[index], self.shape.starts[index + 1]

    def read(self, index: int) -> Tensor:
        """A copy of a row's bytes, uint8. Raises DataError where they do not have their checksum."""
        begin, end = self.place(index)
        self._advise("MADV_WILLNEED", index)  # one request for all of the row, not one a page
        blob = pages(end - begin)
        np.copyto(blob, self._bytes[begin:end])
        # Its pages leave this process (they stay in the system's cache), so that its memory stays flat.
        self._advise("MADV_DONTNEED", index)
        if zlib.crc32(blob.data) != int(self._checks[index]):
            fix = "eagle3 hidden-states verify says what else is damaged, and what to do"
            raise DataError(
                "damaged-store", f"checksum differs in bytes {begin} to {end}", where=str(self.path), fix=fix
            )
        return torch.from_numpy(blob)

    def _advise(self, advice: str, index: int) -> None:
        begin, end = self.place(index)
        if end > begin and hasattr(mmap, advice):
            first = begin - begin % FAULT_BYTES
            last = min(len(self._map), end + -end % FAULT_BYTES)
            self._map.madvise(getattr(mmap, advice), first, last - first)
