"""Free space on the disks that matter, shared memory, and how many files may be open."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from eagle3cli.runtime.doctor.finding import Finding

LOW_DISK_GB = 10
LOW_TMP_GB = 1
LOW_SHM_GB = 1
FILES_ENOUGH = 4096
FILES_FEW = 1024
SHM = Path("/dev/shm")


def disks() -> Iterator[Finding]:
    """The current folder, the hub's cache and the folder for temporary files."""
    from huggingface_hub.constants import HF_HUB_CACHE

    places = {
        "disk here": (Path.cwd(), LOW_DISK_GB, "cd to a folder on a larger disk"),
        "hub cache": (Path(HF_HUB_CACHE), LOW_DISK_GB, "export HF_HOME=/path/on/a/larger/disk"),
        "temporary files": (Path(tempfile.gettempdir()), LOW_TMP_GB, "export TMPDIR=/path/on/a/larger/disk"),
    }
    for name, (folder, low, fix) in places.items():
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(existing).free / 1e9
        if not os.access(existing, os.W_OK):
            yield Finding(
                name, "problem", f"cannot write to {existing}", fix.replace("a larger disk", "a disk of yours")
            )
        else:
            yield _space(name, f"{free:.0f} GB free at {folder}", free, low, fix)


def shared_memory() -> Iterator[Finding]:
    """Where processes of one machine meet: GPU servers and several ranks need it."""
    if SHM.is_dir():
        total = shutil.disk_usage(SHM).total / 1e9
        yield _space("shared memory", f"{total:.1f} GB at {SHM}", total, LOW_SHM_GB, "docker run --shm-size=16g ...")


def _space(name: str, detail: str, amount: float, low: float, fix: str) -> Finding:
    return Finding(name, "ok", detail) if amount >= low else Finding(name, "note", f"{detail}, that is little", fix)


def open_files() -> Iterator[Finding]:
    """Each request under way and each shard is an open file."""
    try:
        import resource
    except ImportError:  # Windows
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= FILES_ENOUGH:
        yield Finding("open files", "ok", "no limit" if soft == resource.RLIM_INFINITY else f"{soft:,} at once")
        return
    most = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    few = soft < FILES_FEW
    need = "--max-concurrency 512 needs more" if few else "many shards and requests need more"
    detail = f"{soft:,} at once; {need}"
    yield Finding("open files", "problem" if few else "note", detail, f"ulimit -n {most}")
