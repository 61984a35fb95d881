"""The processor cores that this process may use. Imports no torch."""

from __future__ import annotations

import os


def available_cpus() -> list[int]:
    """Their numbers, ascending; all of the machine where the system does not tell."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))
