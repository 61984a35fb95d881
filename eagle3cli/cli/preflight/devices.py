"""Devices and ports: named rightly, there, and free."""

from __future__ import annotations

import difflib
import os
import re
import socket

from eagle3cli.errors import UsageError
from eagle3cli.runtime.gpus import check_processes, visible_gpus
from eagle3cli.runtime.processes.job import check_roles
from eagle3cli.runtime.processes.slurm import as_torchrun
from eagle3cli.settings.tables import Settings

KINDS = ("auto", "cpu", "cuda", "mps", "xpu", "hpu", "npu", "mtia", "xla", "privateuseone")
MEANT = {"gpu": "cuda", "nvidia": "cuda", "gpu0": "cuda:0", "cuda0": "cuda:0", "rocm": "cuda", "metal": "mps"}


def check_device(name: str) -> None:
    """Raise UsageError for a device with a wrong name, and for a GPU that is not there."""
    match = re.fullmatch(r"([a-z]+)(?::(\d+))?", name)
    if match is None or match[1] not in KINDS:
        word = re.sub(r"[^a-z0-9]", "", name.lower())
        close = MEANT.get(word) or next(iter(difflib.get_close_matches(name, KINDS[:5], n=1)), None)
        fix = f"did you mean {close}? else use cpu, cuda or cuda:N" if close else "use cpu, cuda or cuda:N"
        raise UsageError("no-such-device", f"no such device: {name}", where="--device", fix=fix)
    if match[1] != "cuda":
        return
    count = visible_gpus()
    if count == 0:
        raise UsageError(
            "no-such-device",
            "torch sees no CUDA device",
            where="--device",
            fix="use --device cpu, or see eagle3 doctor",
        )
    if count is not None and match[2] is not None and int(match[2]) >= count:
        what = f"no GPU {match[2]}: this machine has {count}, counted from 0"
        raise UsageError(
            "no-such-device", what, where="--device", fix=f"use cuda:{count - 1}" if count > 1 else "use cuda:0"
        )


def check_gpus(gpus: str | None, device: str) -> None:
    """Raise UsageError where ``--gpus`` asks for more than there are; GPUs do not count where ``device`` is the CPU."""
    count = 0 if device == "cpu" else visible_gpus()
    if gpus is not None and count is not None:
        check_processes(gpus, count)


def check_split(settings: Settings) -> None:
    """Raise UsageError where the processes that the settings start cannot be split as they say."""
    gpus = settings.launch.gpus
    started = int((os.environ | as_torchrun(os.environ)).get("WORLD_SIZE", "1"))
    if gpus is not None and "WORLD_SIZE" not in os.environ:
        count = 0 if settings.target.device == "cpu" else visible_gpus()
        if gpus == "auto" and count is None:
            return  # torch will tell
        started = max(1, count or 0) if gpus == "auto" else int(gpus)
    check_roles(settings, started)


def check_port(settings: Settings) -> None:
    """Raise UsageError where a server is to be started at a port that another program has."""
    port = settings.server.port
    if port is None:
        return
    for number in range(port, port + (settings.server.replicas or 1)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", number))
            except OSError as error:
                fix = "choose another --port, or leave it out"
                what = f"port {number} cannot be had: {(error.strerror or str(error)).lower()}"
                raise UsageError("port-taken", what, where="--port", fix=fix) from error
