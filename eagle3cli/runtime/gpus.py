"""How many GPUs a process would see, known without torch; whether this machine has as many as are asked for."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from eagle3cli.errors import UsageError
from eagle3cli.runtime.cpus import available_cpus

NVML = "libnvidia-ml.so.1"
DEVICE_FILES = ("nvidia[0-9]*", "nvidiactl", "kfd", "dxg", "nvhost-gpu", "nvgpu")
"""In /dev, where a driver is loaded: of NVIDIA, of AMD, of Windows below Linux, of a Jetson."""
FEW_PROCESSES = 8
"""Processes that any machine may try: a rehearsal of one with GPUs."""


def visible_gpus() -> int | None:
    """GPUs that torch would see; None where only torch itself can tell."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return int(torch.cuda.device_count()) if torch.cuda.is_available() else 0
    count = _installed_gpus()
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if count is None or named is None:
        return count
    return min(count, _named_gpus(named)) if count else 0


def _installed_gpus() -> int | None:
    """GPUs of this machine, by NVIDIA's library; 0 where no driver has left a device file."""
    try:
        library = ctypes.CDLL(NVML)
        count = ctypes.c_uint(0)
        if library.nvmlInit_v2() == 0 and library.nvmlDeviceGetCount_v2(ctypes.byref(count)) == 0:
            return int(count.value)
    except (OSError, AttributeError):
        pass
    has_driver = any(any(Path("/dev").glob(pattern)) for pattern in DEVICE_FILES)
    return 0 if sys.platform.startswith("linux") and not has_driver else None


def _named_gpus(named: str) -> int:
    """Entries of CUDA_VISIBLE_DEVICES up to the first that CUDA would stop at."""
    count = 0
    for entry in map(str.strip, named.split(",")):
        if not entry or entry.startswith("-"):
            break
        count += 1
    return count


def check_processes(gpus: str, count: int) -> None:
    """Raise UsageError where ``--gpus`` asks for more processes than this machine with ``count`` GPUs can carry."""
    if gpus == "auto":
        return
    if count and int(gpus) > count:
        raise UsageError(
            "process-count", f"{gpus} GPUs asked for, {count} there", where="--gpus", fix="use --gpus auto"
        )
    cpus = len(available_cpus())
    if not count and int(gpus) > max(cpus, FEW_PROCESSES):
        what = f"{gpus} processes asked for; this machine has no GPU, and {cpus} CPU cores"
        raise UsageError(
            "process-count", what, where="--gpus", fix="use --gpus auto, or a number that this machine has cores for"
        )
