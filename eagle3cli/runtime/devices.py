"""How much of this machine torch may use."""

from __future__ import annotations

import os

import torch


def set_threads(threads: int | None) -> int:
    """Let torch use ``threads`` CPU threads; None is one per core this process may run on, unless the environment
    says otherwise (``OMP_NUM_THREADS``). Returns the number in use."""
    if threads is None and not os.environ.get("OMP_NUM_THREADS"):
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if threads is not None:
        torch.set_num_threads(threads)
    return torch.get_num_threads()
