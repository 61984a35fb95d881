"""Start a command in several processes on this machine, with torchrun's own agent."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from eagle3cli.errors import FAILED, Eagle3Error, Stopped, UsageError

FOLDER = "EAGLE3_LAUNCH"
"""Environment variable: where the ranks leave their errors and the first one its result."""

SAVING: dict[str, Any] = {"signals_to_handle": "SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1", "shutdown_timeout": 120}
"""Signals that the ranks are told of, and the seconds that they have to save; where this torch lets us say so."""


def processes(wanted: str | None) -> int:
    """Processes that ``--gpus`` asks for: a number, or ``auto`` for one a GPU; 1 where this command joins others.

    Raises UsageError for more than there are GPUs, where there are any.
    """
    if wanted is None or "WORLD_SIZE" in os.environ:
        return 1
    import torch

    there = torch.cuda.device_count()
    if wanted == "auto":
        return max(1, there)
    if there and int(wanted) > there:
        raise UsageError(f"{wanted} GPUs asked for, {there} there", where="--gpus", fix="use --gpus auto")
    return int(wanted)


def launch(words: Sequence[str], count: int, payload: dict[str, Any], threads: int | None) -> Any:
    """Run ``python words`` in ``count`` processes that find ``payload``; returns what the first one left as result.

    When one fails the others are ended, and its own error is raised here.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # its errors are told below
    with tempfile.TemporaryDirectory(prefix="eagle3-") as name, _environment(Path(name), count, threads):
        folder = Path(name)
        (folder / "payload.json").write_text(json.dumps(payload), encoding="utf-8")
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=folder.name,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            max_restarts=0,
            monitor_interval=0.2,
            **{name: value for name, value in SAVING.items() if name in LaunchConfig.__dataclass_fields__},
        )
        try:
            elastic_launch(config, sys.executable)(*words)
        except SignalException as stopped:
            found = _first_error(folder)
            said = found["what"] if found else "stopped before anything was saved"
            raise Stopped(int(stopped.sigval), said, fix="run the same command again to go on") from None
        except ChildFailedError as failed:
            raise _error(folder, failed, count) from None
        return json.loads((folder / "result.json").read_text(encoding="utf-8"))


@contextmanager
def _environment(folder: Path, count: int, threads: int | None) -> Iterator[None]:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    new = {FOLDER: str(folder)}
    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        new["OMP_NUM_THREADS"] = str(max(1, cores // count))
    before = {name: os.environ.get(name) for name in new}
    os.environ.update(new)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def tell_error(rank: int, error: Eagle3Error, *, lost: bool = False) -> None:
    """Leave this rank's error for the process that started the ranks, if one did; ``lost``: another has left it."""
    folder = os.environ.get(FOLDER)
    if folder is not None:
        told = {
            "what": error.what,
            "where": error.where,
            "fix": error.fix,
            "code": error.exit_code,
            "rank": rank,
            "lost": lost,
        }
        path = Path(folder) / f"error_{rank}.json"
        path.write_text(json.dumps({**told, "time": time.time()}), encoding="utf-8")


def _first_error(folder: Path) -> dict[str, Any] | None:
    found = []
    for path in folder.glob("error_*.json"):
        try:
            found.append(json.loads(path.read_text(encoding="utf-8")))
        except ValueError:
            continue
    return min(found, key=lambda error: (error["lost"], float(error["time"]))) if found else None


def _error(folder: Path, failed: Any, count: int) -> Eagle3Error:
    found = _first_error(folder)
    killed = [item for item in failed.failures.items() if item[1].exitcode < 0 and item[1].exitcode != -signal.SIGTERM]
    if found is not None and not (found["lost"] and killed):
        what = f"rank {found['rank']} of {count}: {found['what']}"
        error = Eagle3Error(what, where=found["where"], fix=found["fix"])
        error.exit_code = found["code"]
        return error
    rank, failure = killed[0] if killed else failed.get_first_failure()
    fix = "look at its log above; run the same command again to go on from the newest checkpoint"
    how = f"was ended by {failure.signal_name()}" if failure.exitcode < 0 else f"ended with code {failure.exitcode}"
    if failure.exitcode == -signal.SIGKILL:
        fix = "somebody killed it, or the system did for want of memory (see dmesg); run the same command again"
    error = Eagle3Error(f"rank {rank} of {count} {how}", fix=fix)
    error.exit_code = FAILED
    return error
