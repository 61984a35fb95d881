"""What a measurement was made on, for people who compare theirs with it; nothing names the machine or its owner."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

from eagle3cli import __version__
from eagle3cli.runtime.cpus import available_cpus
from eagle3cli.runtime.packages import installed_version

SMI = ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader")


def machine() -> dict[str, Any]:
    """Operating system, processor, memory in GiB, GPUs, and the versions of Python and of the packages that count."""
    packages = {name: installed_version(name) for name in ("torch", "transformers")}
    return {
        "eagle3": __version__,
        "python": platform.python_version(),
        **packages,
        "os": f"{platform.system()} {platform.machine()}",
        "cpu": cpu_name(),
        "cores": len(available_cpus()),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "gpus": gpu_names(),
    }


def cpu_name() -> str:
    """The processor's name, as Linux tells it."""
    try:
        name = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:
        name = None
    return name[1].strip() if name else platform.processor()


def gpu_names() -> list[str]:
    """The names of the machine's NVIDIA GPUs."""
    try:
        done = subprocess.run(SMI, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()]
