"""The inside of the sandbox, run as a script: limits first, then the program from standard input.

Standard library only.
"""

from __future__ import annotations

import ctypes
import io
import json
import os
import resource
import sys
from contextlib import suppress
from typing import Any

MAX_MEMORY_BYTES = 2 << 30
MAX_FILE_BYTES = 1 << 20
REFUSED = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.kill", "ctypes.", "pty.")
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.chmod", "os.truncate", "shutil.rmtree")
CLONE_NEWUSER = 0x10000000
CLONE_NEWNET = 0x40000000


def main() -> None:
    """Read what to run, give up what it does not need, run it, tell the word."""
    request = json.loads(sys.stdin.buffer.read())
    result_fd = os.dup(1)
    limit(int(request["seconds"]) + 1)
    home = os.getcwd()
    sys.stdin = io.StringIO()
    sys.stdout = io.StringIO()
    sys.stderr = io.StringIO()
    sys.setrecursionlimit(5000)
    sys.addaudithook(lambda event, details: refuse(event, details, home))
    exec(compile(request["program"], "program", "exec"), {"__name__": "program", "PROGRAM": request["answer"]})
    os.write(result_fd, request["word"].encode())


def limit(seconds: int) -> None:
    """Limits of the process; the network goes where the system lets us leave it."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNET)
    limits = {
        resource.RLIMIT_CPU: seconds,
        resource.RLIMIT_FSIZE: MAX_FILE_BYTES,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_AS: MAX_MEMORY_BYTES,
        resource.RLIMIT_NOFILE: 64,
    }
    for which, most in limits.items():
        with suppress(ValueError, OSError):
            resource.setrlimit(which, (most, most))


def refuse(event: str, details: tuple[Any, ...], home: str) -> None:
    """Raise for the network, for other processes, and for changes outside of the program's own folder."""
    if event.startswith(REFUSED):
        raise PermissionError(f"{event} is not allowed here")
    if event != "open" and event not in CHANGES:
        return
    is_path = isinstance(details[0], str | bytes)
    path = os.path.realpath(os.fsdecode(details[0])) if is_path else ""
    if path.startswith(home + os.sep):
        return
    if event in CHANGES:
        raise PermissionError(f"{event} is not allowed outside of {home}")
    flags = details[2] if len(details) > 2 and isinstance(details[2], int) else 0
    if is_path and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        raise PermissionError(f"writing {path} is not allowed here")


if __name__ == "__main__":
    main()
