"""Whether a run goes on: what its last session said, and whether that process still lives."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle3cli.runs.folder import ABOUT, LOG
from eagle3cli.training.history import HISTORY

SILENT_SECONDS = 600.0
"""A process that cannot be asked counts as gone after so long without a line."""
RUNNING, FINISHED, STOPPED, FAILED, DEAD, UNKNOWN = "running", "finished", "stopped", "failed", "dead", "unknown"


@dataclass(frozen=True)
class State:
    """One of the words above, and the sentence for people."""

    name: str
    told: str
    silent: float
    """Seconds since any of the run's files was written."""

    @property
    def ended(self) -> bool:
        """Nothing more will come."""
        return self.name != RUNNING


def process() -> dict[str, Any]:
    """This process, so that another one can tell whether it still lives."""
    return {"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid())}


def state_of(folder: Path, about: Mapping[str, Any]) -> State:
    """The state of the run in ``folder``, whose ``run.json`` is ``about``."""
    silent = time.time() - last_sign(folder)
    session = (sessions_of(about) or [{}])[-1]
    name, since = session.get("state"), f"no sign of life since {clock(last_sign(folder))}"
    if name in (FINISHED, STOPPED):
        return State(name, name, silent)
    if name == FAILED:
        return State(FAILED, f"failed: {session.get('reason', 'see log.txt')}", silent)
    if name != RUNNING:  # of an earlier version, or still being set up
        recent = silent <= SILENT_SECONDS
        return State(RUNNING, "being set up", silent) if recent else State(UNKNOWN, since, silent)
    lives = alive(session)
    if lives is False or (lives is None and silent > SILENT_SECONDS):
        return State(DEAD, f"{since}; its process is gone" if lives is False else since, silent)
    return State(RUNNING, RUNNING, silent)


def sessions_of(about: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The sessions of a ``run.json``, oldest first."""
    found = about.get("sessions")
    return [session for session in found if isinstance(session, dict)] if isinstance(found, list) else []


def last_sign(folder: Path) -> float:
    """When any of the files that a run keeps writing was written, in seconds since 1970; 0 for none."""
    times = []
    for name in (ABOUT, HISTORY, LOG, "checkpoints"):
        try:
            times.append((folder / name).stat().st_mtime)
        except OSError:
            continue
    return max(times, default=0.0)


def clock(seconds: float) -> str:
    """A time of day with its date, as people here read it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(seconds))


def alive(session: Mapping[str, Any]) -> bool | None:
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
