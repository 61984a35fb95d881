"""Runs a server that never outlives the program that wants it: ``python guard.py COMMAND...``.

Standard input is a pipe whose other end that program holds. When it closes, for whatever reason (also ``kill -9``), the
server's whole process group is stopped. Standard library only; run as a script, so that it is up at once.

Not ``runtime/processes/parent.py``: that ends one process with its parent, by SIGKILL and on Linux alone. This one
outlives the program, to end the server politely and then what is left of its group.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from contextlib import suppress

TERMINATE_SECONDS = 10.0
"""Seconds from the polite signal to the one that cannot be refused."""
POLL_SECONDS = 0.2


def main(argv: list[str]) -> int:
    """Run the command until it or the pipe ends; returns its exit code."""
    signals: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: signals.append(number))
    server = subprocess.Popen(argv, stdin=subprocess.DEVNULL, start_new_session=True)
    while server.poll() is None and not signals and not pipe_has_ended():
        pass
    stop_group(server)
    return server.returncode if server.returncode >= 0 else 128 - server.returncode


def pipe_has_ended() -> bool:
    """Whether the other end of standard input is closed; looks for a moment."""
    readable, _, _ = select.select([0], [], [], POLL_SECONDS)
    return bool(readable) and not os.read(0, 1)


def stop_group(server: subprocess.Popen[bytes]) -> None:
    """Ask the server to end, and then end what is left of its process group.

    Only its first process is asked: SGLang takes the end of another one for a crash and waits to tell about it.
    """
    server.terminate()
    until = time.monotonic() + TERMINATE_SECONDS
    while server.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
