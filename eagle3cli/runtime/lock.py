"""One process at a time in a folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eagle3cli.errors import Eagle3Error


@contextmanager
def locked(path: Path, busy: Eagle3Error) -> Iterator[None]:
    """Hold the lock on a folder, or on a file that is made where it is missing; raises ``busy`` if it is taken.

    A process that is killed lets go of it.
    """
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise busy from error
        yield
    finally:
        os.close(handle)
