"""What this machine has and lacks for the work: one finding a check, each problem with its fix."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from eagle3cli.runtime import demo

HUB_SECONDS = 3.0
LOW_DISK_GB = 10


@dataclass(frozen=True)
class Finding:
    """``ok``; ``note``: works, but something is missing; ``problem``: something will fail."""

    check: str
    state: Literal["ok", "note", "problem"]
    detail: str
    fix: str | None = None

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


def examine() -> list[Finding]:
    """All checks; none of them raises, none takes longer than a few seconds."""
    found: list[Finding] = []
    for check in (_packages, _torch, _attention, _memory, _disk, _hub, _sglang, _demo):
        try:
            found += check()
        except Exception as error:  # a broken installation is what the doctor is there to report
            name = check.__name__.strip("_")
            found.append(Finding(name, "problem", f"{type(error).__name__}: {error}", "install eagle3 anew"))
    return found


def _packages() -> Iterator[Finding]:
    from packaging.requirements import Requirement

    versions = [f"eagle3 {importlib.metadata.version('eagle3')}", f"Python {platform.python_version()}"]
    for text in importlib.metadata.requires("eagle3") or ():
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            yield Finding("packages", "problem", f"{wanted.name} is not installed", f"pip install '{text}'")
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            detail = f"{wanted.name} {version} is installed, {wanted.specifier} is needed"
            yield Finding("packages", "problem", detail, f"pip install '{text}'")
        versions.append(f"{wanted.name} {version}")
    yield Finding("versions", "ok", ", ".join(versions))


def _torch() -> Iterator[Finding]:
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding("CPU", "ok", f"{cores} cores, torch uses {torch.get_num_threads()} threads")
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            seen = torch.cuda.get_device_properties(index)
            yield Finding(f"GPU {index}", "ok", f"{seen.name}, {seen.total_memory / 2**30:.0f} GiB")
    elif torch.version.cuda is None and shutil.which("nvidia-smi"):
        fix = "install a CUDA build of torch: https://pytorch.org/get-started"
        yield Finding("GPU", "problem", "an NVIDIA driver is here, but this torch is built for CPUs", fix)
    elif torch.version.cuda is not None and shutil.which("nvidia-smi"):
        fix = "compare the driver's CUDA version (nvidia-smi) with torch's; see that this user may use the GPU"
        yield Finding("GPU", "problem", f"torch (CUDA {torch.version.cuda}) cannot use the NVIDIA driver here", fix)
    else:
        yield Finding("GPU", "note", "none; the CPU serves small targets such as the quickstart's")


def _attention() -> Iterator[Finding]:
    import torch

    kinds = ["sdpa"]
    if torch.cuda.is_available():
        cuda = torch.backends.cuda
        on = {"flash": cuda.flash_sdp_enabled(), "memory-efficient": cuda.mem_efficient_sdp_enabled()}
        kinds += [f"sdpa's {name} kernel" for name, there in on.items() if there]
    yield Finding("attention", "ok", ", ".join(kinds))


def _memory() -> Iterator[Finding]:
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
        yield Finding("memory", "ok", f"{total:.0f} GiB")


def _disk() -> Iterator[Finding]:
    from huggingface_hub.constants import HF_HUB_CACHE

    for name, folder in (("disk here", Path.cwd()), ("disk of the hub cache", Path(HF_HUB_CACHE))):
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        free = shutil.disk_usage(there).free / 1e9
        detail = f"{free:.0f} GB free at {folder}"
        if not os.access(there, os.W_OK):
            yield Finding(name, "problem", f"cannot write to {there}", "choose another folder, or set HF_HOME")
        elif free < LOW_DISK_GB:
            yield Finding(name, "note", detail, "make room: hidden states of a large target need hundreds of GB")
        else:
            yield Finding(name, "ok", detail)


def _hub() -> Iterator[Finding]:
    import httpx
    from huggingface_hub import constants, get_token

    if constants.HF_HUB_OFFLINE:
        fix = "unset HF_HUB_OFFLINE to download; local folders work as they are"
        yield Finding("hub", "note", "offline by HF_HUB_OFFLINE", fix)
        return
    try:
        httpx.head(constants.ENDPOINT, timeout=HUB_SECONDS)
        yield Finding("hub", "ok", f"{constants.ENDPOINT} answers")
    except httpx.HTTPError as error:
        fix = "give models and data as local folders, or set HTTPS_PROXY, or HF_ENDPOINT to a mirror"
        yield Finding("hub", "note", f"{constants.ENDPOINT} does not answer ({type(error).__name__})", fix)
    if get_token():
        yield Finding("hub login", "ok", "a token is set")
    else:
        yield Finding("hub login", "note", "no token", "gated models such as Llama need one: set HF_TOKEN")


def _sglang() -> Iterator[Finding]:
    if importlib.util.find_spec("sglang"):
        yield Finding("SGLang", "ok", f"sglang {importlib.metadata.version('sglang')}")
    else:
        yield Finding("SGLang", "note", "not installed", "to serve drafts on a GPU: pip install 'eagle3[gpu]'")


def _demo() -> Iterator[Finding]:
    absent = demo.missing()
    if absent:
        yield Finding("quickstart", "note", f"not installed: {', '.join(absent)}", demo.install_line())
    else:
        yield Finding("quickstart", "ok", "its model and prompts are installed")
