"""The processor cores that this process may use. Imports no torch."""

from __future__ import annotations

import os
from pathlib import Path


def available_cpus() -> list[int]:
    """Their numbers, ascending; all of the machine where the system does not tell."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def has_bfloat16() -> bool:
    """Whether the processor has instructions for matrix products in bfloat16 (AVX512-BF16 or AMX)."""
    try:
        words = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return False
    return not {"avx512_bf16", "amx_bf16"}.isdisjoint(words)
