"""A process that ends with the one that started it."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from eagle3cli.errors import FAILED

PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int | None = None) -> None:
    """Have the system end this process when its parent ends, even by ``kill -9``; Linux alone can.

    ``parent`` is the process that started this one: it may have ended before it was asked for.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if parent is not None and os.getppid() != parent:
        os._exit(FAILED)
