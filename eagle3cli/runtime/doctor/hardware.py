"""GPUs and their driver, attention kernels, cores and memory."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from eagle3cli.runtime.cpus import available_cpus
from eagle3cli.runtime.doctor.finding import Finding

BUSY_SHARE = 0.2
SMI = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
CGROUP = Path("/sys/fs/cgroup")


def gpus() -> Iterator[Finding]:
    """Each GPU with its memory, or why there is none."""
    import torch

    if torch.cuda.is_available():
        yield Finding("driver", "ok", f"{driver() or 'unknown'}; torch is built for CUDA {torch.version.cuda}")
        for index in range(torch.cuda.device_count()):
            gpu = torch.cuda.get_device_properties(index)
            free, total = torch.cuda.mem_get_info(index)
            detail = f"{gpu.name}, {total / 2**30:.0f} GiB, {free / 2**30:.0f} free, compute {gpu.major}.{gpu.minor}"
            if free < (1 - BUSY_SHARE) * total:
                fix = f"nvidia-smi shows who uses it; leave it out with CUDA_VISIBLE_DEVICES (this is number {index})"
                yield Finding(f"GPU {index}", "note", detail, fix)
            else:
                yield Finding(f"GPU {index}", "ok", detail)
    elif shutil.which("nvidia-smi") is None:
        yield Finding("GPU", "note", "none; the CPU serves small targets such as the quickstart's")
    elif torch.version.cuda is None:
        fix = "pip install --force-reinstall torch --index-url https://download.pytorch.org/whl/cu128"
        detail = f"the NVIDIA driver {driver() or ''} is here, but this torch ({torch.__version__}) is built for CPUs"
        yield Finding("GPU", "problem", detail, fix)
    else:
        fix = "nvidia-smi must show the GPUs and no older CUDA than torch's; in a container: docker run --gpus all"
        detail = f"torch (CUDA {torch.version.cuda}) cannot use the driver {driver() or ''}".rstrip()
        yield Finding("GPU", "problem", detail, fix)


def driver() -> str | None:
    """The NVIDIA driver's version."""
    try:
        done = subprocess.run(SMI, capture_output=True, text=True, timeout=3, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.split("\n")[0].strip() or None


def attention() -> Iterator[Finding]:
    """The kernels that ``--attention-backend`` can take."""
    import torch

    kinds = ["sdpa"]
    if torch.cuda.is_available():
        cuda = torch.backends.cuda
        on = {"flash": cuda.flash_sdp_enabled(), "memory-efficient": cuda.mem_efficient_sdp_enabled()}
        kinds += [f"sdpa's {name} kernel" for name, enabled in on.items() if enabled]
        kinds.append("flex_attention")
    yield Finding("attention", "ok", ", ".join(kinds))


def cores() -> Iterator[Finding]:
    """Cores, the container's share of them, and the threads that torch takes."""
    import torch

    allowed = len(available_cpus())
    threads = torch.get_num_threads()
    omp_threads = os.environ.get("OMP_NUM_THREADS")
    detail = f"{allowed} cores, torch uses {threads} threads" + (
        f" (OMP_NUM_THREADS={omp_threads})" if omp_threads else ""
    )
    quota = cpu_quota()
    if quota is not None and quota < threads:
        fix = f"export OMP_NUM_THREADS={max(1, int(quota))}"
        yield Finding("CPU", "note", f"{detail}, but this container may use {quota:g} cores", fix)
    elif omp_threads and omp_threads.isdecimal() and int(omp_threads) > allowed:
        yield Finding(
            "CPU", "note", f"{detail}: more threads than cores slow each other", f"export OMP_NUM_THREADS={allowed}"
        )
    elif omp_threads and 2 * threads < allowed:
        yield Finding("CPU", "note", f"{detail}: most cores idle", f"unset OMP_NUM_THREADS, or --threads {allowed}")
    else:
        yield Finding("CPU", "ok", detail)


def cpu_quota() -> float | None:
    """The cores that a container may use, None where nothing limits it."""
    limit, _, period = _read("cpu.max").partition(" ")
    return int(limit) / int(period) if limit.isdecimal() and period.isdecimal() else None


def memory() -> Iterator[Finding]:
    """The memory of the machine, or what the container leaves of it."""
    if not (hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names):
        return
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    limit = _read("memory.max")
    if limit.isdecimal() and int(limit) / 2**30 < total:
        yield Finding("memory", "ok", f"{int(limit) / 2**30:.0f} GiB (this container's share of {total:.0f})")
    else:
        yield Finding("memory", "ok", f"{total:.0f} GiB")


def _read(name: str) -> str:
    try:
        return (CGROUP / name).read_text().strip()
    except OSError:
        return ""
