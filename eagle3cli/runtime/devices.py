"""How much of this machine torch may use."""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eagle3cli.runtime.cpus import available_cpus, has_bfloat16

M_TRIM_THRESHOLD = -1
M_TOP_PAD = -2
M_MMAP_MAX = -4
PAGES_FROM = 2**20
"""Bytes from which a stretch of memory is worth a mapping of its own."""


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy that the host does not wait for: torch keeps the pinned memory until it is done."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@dataclass(frozen=True)
class HostCopy:
    """A copy of a device's numbers in the host's memory that may still be on its way."""

    values: Tensor
    arrived: torch.cuda.Event | None

    def read(self) -> Tensor:
        """The numbers; waits for what the device had been given before the copy, not for what came after it."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return self.values


def to_host(tensor: Tensor) -> HostCopy:
    """Begin a copy to the host's memory that nobody waits for until it is read."""
    if tensor.device.type != "cuda":
        return HostCopy(tensor, None)
    values = tensor.to("cpu", non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return HostCopy(values, arrived)


class SideStream:
    """Work that a GPU does beside what it is at: what is made there is waited for by the device alone."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self.stream.wait_stream(torch.cuda.current_stream(device))  # what stands on the device now may be read

    @contextmanager
    def running(self) -> Iterator[torch.cuda.Event]:
        """What the block begins goes onto the stream; the event says when it is done."""
        done = torch.cuda.Event()
        with torch.cuda.stream(self.stream):
            yield done
            done.record(self.stream)

    def join(self, done: torch.cuda.Event, tensors: Iterable[Tensor]) -> None:
        """From here on the current stream may read these, once they are done; their memory is kept until it has."""
        current = torch.cuda.current_stream(self.stream.device)
        current.wait_event(done)
        for tensor in tensors:
            tensor.record_stream(current)


def set_threads(threads: int | None) -> int:
    """Let torch use ``threads`` CPU threads; None is one per core this process may run on, unless the environment
    says otherwise (``OMP_NUM_THREADS``). Returns the number in use."""
    if threads is None and not os.environ.get("OMP_NUM_THREADS"):
        threads = len(available_cpus())
    if threads is not None:
        torch.set_num_threads(threads)
    _keep_freed_memory()
    # Denormal numbers cost a trained draft's step 14% of its time on a CPU, and flushing them no acceptance.
    torch.set_flush_denormal(True)
    return torch.get_num_threads()


def _keep_freed_memory() -> None:
    """Let glibc reuse freed memory instead of giving it back: fresh pages cost a training step more than its copies.

    The same as MALLOC_MMAP_MAX_=0, MALLOC_TRIM_THRESHOLD_ and MALLOC_TOP_PAD_ in the environment; elsewhere nothing.
    """
    if not sys.platform.startswith("linux") or torch.cuda.is_available():
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 64 * 2**20)):
            mallopt(option, value)


def pages(size: int) -> npt.NDArray[np.uint8]:
    """So many bytes that the system gets back when nobody uses them, for what threads hand to each other.

    A thread's heap keeps what was freed in it (:func:`_keep_freed_memory`), and others cannot use that.
    """
    if size < PAGES_FROM:
        return np.empty(size, dtype=np.uint8)
    return np.frombuffer(mmap.mmap(-1, size), dtype=np.uint8)


def give_back_gpu_memory() -> None:
    """Return what torch keeps of the GPUs though nothing uses it, for the next process that needs it."""
    gc.collect()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def fastest_type(device: torch.device) -> torch.dtype:
    """The type in which matrix products are fastest: bfloat16 on a GPU and on processors with instructions for it.

    Measured: about twice as fast on a processor with AVX512-BF16.
    """
    if device.type != "cpu":
        return torch.bfloat16
    return torch.bfloat16 if has_bfloat16() else torch.float32


def compute_type(name: str, device: torch.device) -> torch.dtype:
    """The type that a setting names: ``auto`` is float32 on a CPU and bfloat16 elsewhere."""
    if name == "fastest":
        return fastest_type(device)
    if name == "auto":
        return torch.float32 if device.type == "cpu" else torch.bfloat16
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def resident_bytes() -> int:
    """Memory that this process takes now."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError):
        return peak_resident_bytes()


def peak_resident_bytes() -> int:
    """The most memory that this process has taken so far; 0 where nobody says.

    Not by ``ru_maxrss`` where Linux says it otherwise: that begins with what the process had that started this one.
    """
    for line in _lines("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # not on Windows
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def memory_of(device: str) -> int | None:
    """Bytes that a device of this machine still has for a run; of the computer what its cgroup leaves, where it has
    one. None where there is no such device here."""
    if device.startswith("cuda"):
        return int(torch.cuda.mem_get_info()[0]) if torch.cuda.is_available() else None
    limits = [int(line.split()[1]) * 1024 for line in _lines("/proc/meminfo") if line.startswith("MemAvailable:")]
    if not limits and "SC_PHYS_PAGES" in os.sysconf_names:
        limits = [os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    cgroup = _lines("/sys/fs/cgroup/memory.max")
    used = _lines("/sys/fs/cgroup/memory.current")
    if cgroup and used and cgroup[0].isdigit():
        limits.append(max(0, int(cgroup[0]) - int(used[0])))
    return min(limits, default=None)


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
