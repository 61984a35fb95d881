"""Start a command in several processes on this machine, with torchrun's own agent."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from eagle3cli.errors import STOPPED, Eagle3Error, Stopped
from eagle3cli.runtime.cpus import available_cpus
from eagle3cli.runtime.gpus import check_processes
from eagle3cli.runtime.processes.job import role_of
from eagle3cli.runtime.processes.parent import end_with_parent
from eagle3cli.runtime.processes.slurm import as_torchrun
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.stop import Stop, catch_stop, stopped

LOOPBACK = "127.0.0.1"
FOLDER = "EAGLE3_LAUNCH"
"""Environment variable: where the ranks leave their errors and the first one its result."""

AGAIN = "run the same command again to go on from the newest checkpoint"

SAVE_TIMEOUT = 120.0
"""Seconds that the ranks have for saving once a signal has asked them to stop."""


def processes(gpus: str | None, device: str) -> int:
    """Processes that ``--gpus`` asks for: a number, or ``auto`` for one a GPU; 1 where this command joins others.
    Where ``device`` is the CPU, GPUs do not count.

    Raises UsageError for more than there are GPUs, or without any more than this machine can carry.
    """
    os.environ.update(as_torchrun(os.environ))
    if gpus is None or "WORLD_SIZE" in os.environ:
        return 1
    import torch

    count = 0 if device == "cpu" else torch.cuda.device_count()
    check_processes(gpus, count)
    return max(1, count) if gpus == "auto" else int(gpus)


def launch(
    words: Sequence[str], count: int, payload: dict[str, Any], threads: int | None, report: Reporter, targets: int = 0
) -> Any:
    """Run ``python words`` in ``count`` processes that find ``payload``; returns what the main one left as result.

    When one fails the others are ended, and its own error is raised here. The agent runs in a thread: there it leaves
    signals alone, whose own handlers lose ranks that are just being started.
    """
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # its errors are told below
    with (
        catch_stop(report) as stop,
        tempfile.TemporaryDirectory(prefix="eagle3-") as name,
        _environment(Path(name), count, threads),
        ThreadPoolExecutor(1, "agent") as pool,
    ):
        folder = Path(name)
        (folder / "payload.json").write_text(json.dumps({**payload, "launcher": os.getpid()}), encoding="utf-8")
        agent = pool.submit(_run_agent, words, count, folder.name)
        _forward_signals(stop, agent, folder)
        failed = agent.result()
        if failed is None:
            return json.loads((folder / "result.json").read_text(encoding="utf-8"))
        raise _error(folder, failed, count, stop.requested, targets)


def _run_agent(words: Sequence[str], count: int, run: str) -> Any:
    """Start the ranks and see them to their end; the error of those that failed, None of none."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    store = _store_of_this_machine()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=run,
        rdzv_backend="static",
        rdzv_endpoint=f"{LOOPBACK}:{store.port}",
        rdzv_configs={"rank": 0, "timeout": 900},
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(config, sys.executable)(*words)
    except ChildFailedError as failed:
        return failed
    return None


def _store_of_this_machine() -> Any:
    """Where the ranks meet. Torch's own store would take connections from anywhere, and asks for no password; the agent
    finds the one of its port in this process instead of opening that.
    """
    from torch.distributed import TCPStore  # type: ignore[attr-defined]

    listener = socket.create_server((LOOPBACK, 0))
    port = listener.getsockname()[1]
    return TCPStore(LOOPBACK, port, is_master=True, multi_tenant=True, master_listen_fd=listener.detach())


def _forward_signals(stop: Stop, agent: Future[Any], folder: Path) -> None:
    """Wait for the agent; tell every rank of a stop signal once, and end those that take too long over it."""
    sent = set[tuple[Path, int]]()
    deadline = float("inf")
    while not wait([agent], timeout=0.1).done:
        if stop.requested is None:
            continue
        deadline = min(deadline, time.monotonic() + SAVE_TIMEOUT)
        number = stop.requested if time.monotonic() < deadline else signal.SIGKILL
        for path in folder.glob("rank_*"):
            if (path, number) not in sent:
                sent.add((path, number))
                with suppress(ProcessLookupError):
                    os.kill(int(path.name.split("_")[2]), number)


def begin_rank() -> Any:
    """The first thing that a rank does; returns the payload. A signal ends it until its command catches them."""
    folder = Path(os.environ[FOLDER])
    payload = json.loads((folder / "payload.json").read_text(encoding="utf-8"))
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Python's own handler would leave a traceback
    end_with_parent(payload["launcher"])
    os.dup2(2, 1)  # the result goes another way; what libraries print (gloo of torch 2.8) is talk
    (folder / f"rank_{os.environ['RANK']}_{os.getpid()}").touch()
    return payload


def _loopback() -> dict[str, str]:
    """Has the ranks of this machine talk through its loopback device, unless somebody chose another way."""
    names = [name for _, name in socket.if_nameindex()] if hasattr(socket, "if_nameindex") else []
    device = next((name for name in ("lo", "lo0") if name in names), None)
    variables = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    return {name: device for name in variables if device is not None and name not in os.environ}


@contextmanager
def _environment(folder: Path, count: int, threads: int | None) -> Iterator[None]:
    cores = len(available_cpus())
    new = {FOLDER: str(folder), **_loopback()}
    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        new["OMP_NUM_THREADS"] = str(max(1, cores // count))
    previous = {name: os.environ.get(name) for name in new}
    os.environ.update(new)
    try:
        yield
    finally:
        for name, value in previous.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def tell_error(rank: int, error: Eagle3Error, *, lost: bool = False) -> None:
    """Leave this rank's error for the process that started the ranks, if one did; ``lost``: another has left it."""
    folder = os.environ.get(FOLDER)
    if folder is not None:
        content = {
            "message": error.message,
            "where": error.where,
            "fix": error.fix,
            "code": error.code,
            "exit_code": error.exit_code,
            "rank": rank,
            "lost": lost,
            "time": time.time(),
        }
        (Path(folder) / f"error_{rank}.json").write_text(json.dumps(content), encoding="utf-8")


def _first_error(folder: Path) -> dict[str, Any] | None:
    errors = []
    for path in folder.glob("error_*.json"):
        with suppress(ValueError):
            errors.append(json.loads(path.read_text(encoding="utf-8")))
    return min(errors, key=lambda error: (error["lost"], float(error["time"])), default=None)


def _error(folder: Path, failed: Any, count: int, stop_signal: int | None, targets: int = 0) -> Eagle3Error:
    def name(rank: int) -> str:
        role = role_of(rank, targets)
        return f"rank {rank} of {count}" + (f" ({role})" if role else "")

    first = _first_error(folder)
    killed = [item for item in failed.failures.items() if item[1].exitcode < 0 and item[1].exitcode != -signal.SIGTERM]
    if stop_signal is not None and (first is None or first["lost"]):
        return stopped(stop_signal, "nothing was saved beyond what was there")
    if first is not None and first["exit_code"] > STOPPED:
        return Stopped(first["exit_code"] - STOPPED, first["message"], fix=first["fix"])
    if first is not None and not (first["lost"] and killed):
        what = f"{name(first['rank'])}: {first['message']}"
        error = Eagle3Error(first["code"], what, where=first["where"], fix=first["fix"])
        error.exit_code = first["exit_code"]
        return error
    rank, failure = killed[0] if killed else failed.get_first_failure()
    fix = f"look at its log above; {AGAIN}"
    how = f"was ended by {failure.signal_name()}" if failure.exitcode < 0 else f"ended with code {failure.exitcode}"
    if failure.exitcode == -signal.SIGABRT:
        fix = "NCCL does that when a message between GPUs outlasts --dist-timeout: its log above names it; " + AGAIN
    if failure.exitcode == -signal.SIGKILL:
        fix = "somebody killed it, or the system did for want of memory (see dmesg); run the same command again"
    where = first["where"] if first is not None and first["lost"] else None
    return Eagle3Error("process-died", f"{name(rank)} {how}", where=where, fix=fix)
