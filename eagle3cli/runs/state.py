"""Whether a run goes on: what its last session said, and whether that process still lives."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle3cli.runs.folder import LOG, METADATA
from eagle3cli.training.history import HISTORY

IDLE_LIMIT = 600.0
"""A process that cannot be asked counts as gone after so long without a line."""
RUNNING = "running"
FINISHED = "finished"
STOPPED = "stopped"
FAILED = "failed"
DEAD = "dead"
UNKNOWN = "unknown"


@dataclass(frozen=True)
class State:
    """One of the words above, and the sentence for people."""

    name: str
    message: str
    idle_seconds: float
    """Seconds since any of the run's files was written."""

    @property
    def ended(self) -> bool:
        """Nothing more will come."""
        return self.name != RUNNING


def this_process() -> dict[str, Any]:
    """This process, so that another one can tell whether it still lives."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid())}


def state_of(folder: Path, metadata: Mapping[str, Any]) -> State:
    """The state of the run in ``folder``, whose ``run.json`` is ``metadata``."""
    written = last_write(folder)
    idle = time.time() - written
    session = (sessions_of(metadata) or [{}])[-1]
    name = session.get("state")
    since = f"no sign of life since {local_time(written)}"
    if name in (FINISHED, STOPPED):
        return State(name, name, idle)
    if name == FAILED:
        return State(FAILED, f"failed: {session.get('reason', 'see log.txt')}", idle)
    if name != RUNNING:  # of an earlier version, or still being set up
        return State(RUNNING, "being set up", idle) if idle <= IDLE_LIMIT else State(UNKNOWN, since, idle)
    if is_gone(session, idle):
        return State(DEAD, f"{since}; its process is gone" if is_alive(session) is False else since, idle)
    return State(RUNNING, RUNNING, idle)


def is_gone(session: Mapping[str, Any], idle: float) -> bool:
    """Whether the session's process has ended, or cannot be asked and was silent for long."""
    living = is_alive(session)
    return living is False or (living is None and idle > IDLE_LIMIT)


def sessions_of(metadata: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sessions of a ``run.json``, oldest first."""
    sessions = metadata.get("sessions")
    return [session for session in sessions if isinstance(session, dict)] if isinstance(sessions, list) else []


def last_write(folder: Path) -> float:
    """When any of the files that a run keeps writing was written, in seconds since 1970; 0 for none."""
    times = []
    for name in (METADATA, HISTORY, LOG, "checkpoints"):
        try:
            times.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    return max(times, default=0.0)


def local_time(seconds: float) -> str:
    """A time of day with its date, as people here read it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def is_alive(session: Mapping[str, Any]) -> bool | None:
    """Whether the session's process lives; None where it runs on another machine, or cannot be asked."""
    pid = session.get("pid")
    if os.name != "posix" or session.get("host") != socket.gethostname() or not isinstance(pid, int) or pid <= 0:
        return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # somebody else's
    return _started(pid) == session.get("started")


def _started(pid: int) -> str:
    """When a process began, as Linux counts it, so that a later one of the same number is not taken for it."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        return "gone" if fields[0] == "Z" else fields[19]
    except (OSError, IndexError):
        return ""
