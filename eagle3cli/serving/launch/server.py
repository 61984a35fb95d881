"""Servers started for a piece of work: brought up, watched, and stopped with all their processes, however it ends."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from random import SystemRandom

import httpx

from eagle3cli.errors import Eagle3Error, UsageError
from eagle3cli.runtime.llama_server import llama_server
from eagle3cli.runtime.processes.slurm import PORTS
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.stop import catch_stop
from eagle3cli.serving.launch import guard
from eagle3cli.serving.launch.commands import Launch, Product, Speculation, launches, replicas_of
from eagle3cli.serving.launch.versions import refuse_older
from eagle3cli.settings.models import TargetSettings
from eagle3cli.settings.serving import ServerSettings

RESTARTS = 3
"""How often a server that dies during the work is started again."""
TAIL_LINES = 20
POLL_SECONDS = 0.5
FIXES = {
    "out of memory": "lower --mem-fraction-static, raise --tp-size, or give a smaller model",
    "Not enough memory": "raise --mem-fraction-static, or give a smaller model",
    "No module named": "install it (pip install 'eagle3[gpu]'), or name a Python that has it: --server-python",
    "ddress already in use": "choose another --port, or leave it out",
    "unrecognized arguments": "check --server-args",
    "Model does not support EAGLE3 interface": "vLLM's class of this target has no states for a draft; transformers' "
    "may have: --server-args '--model-impl transformers'",
    "EAGLE3: target layer": "the draft reads layers that this target has not: give the target that it was trained for",
    "layer input tensor is null": "llama.cpp has no states of this target for a draft: use --engine local",
    "does not implement set_eagle3_layers_to_capture": "SGLang's class of this target has no states for a draft: use "
    "--engine vllm or local",
}


class ServerProcess:
    """One server in a process group of its own, behind a guard that ends it when this program ends."""

    def __init__(self, launch: Launch, log: Path) -> None:
        self.launch = launch
        self.log = log
        self.starts = 0
        self._guard: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """Where it listens."""
        return f"127.0.0.1:{self.launch.port}"

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self._guard.poll() if self._guard else None

    def start(self) -> None:
        """Start it; its output is appended to the log."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.starts += 1
        with self.log.open("ab") as log:
            self._guard = subprocess.Popen(
                [sys.executable, "-I", guard.__file__, *self.launch.argv],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **self.launch.environment},
                start_new_session=True,
            )

    def is_healthy(self, client: httpx.Client) -> bool:
        """Whether it answers; raises Eagle3Error where it has ended."""
        if self.exit_code is not None:
            raise self.error(f"the server ended while it started (exit code {self.exit_code})")
        with suppress(httpx.HTTPError):
            return client.get(f"http://{self.address}/health").status_code == 200
        return False

    def tail(self, lines: int = TAIL_LINES) -> str:
        """The end of its log."""
        try:
            with self.log.open("rb") as log:
                log.seek(max(0, self.log.stat().st_size - 16384))
                text = log.read().decode("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(line.rstrip()[:500] for line in text.splitlines()[-lines:])

    def last_line(self) -> str:
        """The log's last line that is not our own question."""
        return next((line for line in reversed(self.tail().splitlines()) if line and "/health" not in line), "")

    def error(self, what: str) -> Eagle3Error:
        """An error that shows the end of the log, and what usually helps."""
        tail = self.tail()
        fix = next((fix for sign, fix in FIXES.items() if sign in tail), "see the log above; the file has all of it")
        return Eagle3Error("server-error", f"{what}; its last lines:\n{tail}", where=str(self.log), fix=fix)

    def stop(self) -> None:
        """End it with all its processes."""
        if self._guard is None:
            return
        assert self._guard.stdin is not None
        with suppress(OSError):
            self._guard.stdin.close()
        try:
            self._guard.wait(3 * guard.TERMINATE_SECONDS)
        except subprocess.TimeoutExpired:
            self._guard.kill()


class Servers:
    """Servers that run; :meth:`restart_dead` starts those again that have died."""

    def __init__(self, processes: Sequence[ServerProcess], report: Reporter) -> None:
        self.processes = processes
        self.report = report

    @property
    def addresses(self) -> list[str]:
        """Where they listen."""
        return [process.address for process in self.processes]

    def restart_dead(self) -> None:
        """Start servers that have died again, up to three times each. Raises Eagle3Error when the last one is gone."""
        for process in self.processes:
            if process.exit_code is None:
                continue
            if process.starts <= RESTARTS:
                self.report.warn(f"the server at {process.address} died and is started again: {process.last_line()}")
                process.start()
            elif all(other.exit_code is not None for other in self.processes):
                raise process.error(f"the server died for the {process.starts}th time")


@contextmanager
def started(
    server: ServerSettings,
    target: TargetSettings,
    report: Reporter,
    *,
    logs: Path,
    product: Product = "sglang",
    speculation: Speculation | None = None,
) -> Iterator[Servers]:
    """Servers of ``target`` that answer, within the block; ``logs`` is the folder of their logs.

    Example::

        with started(settings.server, settings.target, report, logs=Path("logs")) as servers:
            print(servers.addresses)

    Raises UsageError for settings that cannot work, Eagle3Error with the log's end where one does not start, Stopped
    after a signal.
    """
    if not target.model_path:
        raise UsageError("missing-target", "no target model", where="--model-path", fix="give a folder or a hub id")
    if speculation is not None:
        refuse_older(product, server.python, speculation.draft)
        if product == "llama.cpp":
            llama_server(server.llama_server, drafts=True)
    ports = free_ports(replicas_of(server, target), server.port)
    planned = launches(product, server, target, ports, speculation)
    servers = Servers([ServerProcess(launch, logs / f"server_{launch.port}.log") for launch in planned], report)
    try:
        for process in servers.processes:
            process.start()
        _wait(servers, server.dist_timeout, report)
        yield servers
    finally:
        for process in servers.processes:
            process.stop()


def _wait(servers: Servers, seconds: float, report: Reporter) -> None:
    """Until every server is healthy."""
    missing = list(servers.processes)
    until = time.monotonic() + seconds
    with (
        catch_stop(report) as stop,
        httpx.Client(timeout=30.0, trust_env=False) as client,
        report.task("start", total=len(missing), unit="servers") as task,
    ):
        while missing:
            for process in list(missing):
                if process.is_healthy(client):
                    missing.remove(process)
                    task.advance()
            stop.check("no server was ready yet")
            if missing and time.monotonic() > until:
                raise missing[0].error(f"the server is not ready after {seconds:.0f} s (--dist-timeout)")
            if missing:
                task.advance(0, log=missing[0].last_line()[-100:])
                time.sleep(POLL_SECONDS)


def free_ports(count: int, first: int | None = None) -> list[int]:
    """Ports that nobody listens on: those from ``first`` on, or any. Raises UsageError for one that is taken.

    A server takes its port minutes after it was chosen: any means none that the system may give away meanwhile.
    """
    candidates = SystemRandom().sample(PORTS, len(PORTS)) if first is None else range(first, first + count)
    ports: list[int] = []
    for port in candidates:
        with socket.socket() as listener:
            # Old connections of a server that has just ended hold its port for a minute; the next one may have it.
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError as error:
                if first is None:
                    continue
                fix = "choose another --port, or leave it out; to use a server there: --server-address-port"
                raise UsageError("port-taken", f"port {port} is taken", where="--port", fix=fix) from error
        ports.append(port)
        if len(ports) == count:
            break
    return ports
