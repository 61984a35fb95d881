"""A shard that is filled in any order, over hours, by several processes: what of it was written outlives them.

It is a shard (``shard.py``) under another name until all rows are there. A row whose checksum is 0 is not: checksums
are written behind the rows, into a file that begins as zeros.
"""

from __future__ import annotations

import os
import zlib
from pathlib import Path

import numpy as np
from torch import Tensor

from eagle3cli.data.hidden_states.shard import ShardShape, reserve, write_at
from eagle3cli.runtime.files import writing

SUFFIX = ".part"


class PartialShard:
    """The shard that will be the file ``path``."""

    def __init__(self, path: Path, shape: ShardShape) -> None:
        self.path = path
        self.shape = shape
        self.part = path.with_name(path.name + SUFFIX)

    @property
    def begun(self) -> bool:
        """Whether its file is there, of this very shard."""
        try:
            with self.part.open("rb") as f:
                header = f.read(len(self.shape.header))
            return header == self.shape.header and self.part.stat().st_size == self.shape.bytes
        except OSError:
            return False

    def begin(self) -> None:
        """Take the space of all rows, unless that was done. Raises Eagle3Error when the disk is full."""
        if not self.begun:
            with writing(self.part, "wb") as f:
                reserve(f, self.shape.bytes)
                write_at(f, 0, self.shape.header)

    def put(self, index: int, blob: Tensor) -> None:
        """Write a row (uint8). Raises ValueError where it has not the size that was said."""
        if len(blob) != self.shape.sizes[index]:
            raise ValueError(f"row {index} of {self.path.name} has {len(blob)} bytes, not {self.shape.sizes[index]}")
        data = blob.numpy().data
        with self.part.open("r+b") as f:
            write_at(f, self.shape.starts[index], data)
            write_at(f, self.shape.starts[-1] + 4 * index, np.array([zlib.crc32(data)], dtype="<u4").tobytes())

    def missing(self) -> list[int]:
        """The rows that nobody has written."""
        with self.part.open("rb") as f:
            f.seek(self.shape.starts[-1])
            checks = np.frombuffer(f.read(4 * len(self.shape.sizes)), dtype="<u4")
        return [int(index) for index in np.flatnonzero(checks == 0)]

    def finish(self) -> None:
        """Give it its own name, once the disk has all of it; all rows must be there."""
        with self.part.open("rb") as f:
            os.fsync(f.fileno())
        self.part.replace(self.path)
