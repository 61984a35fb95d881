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

MEMORY = 2 << 30
FILES = 1 << 20
REFUSED = ("socket.", "subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.kill", "ctypes.", "pty.")
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000


def main() -> None:
    """Read what to run, give up what it does not need, run it, tell the word."""
    given = json.loads(sys.stdin.buffer.read())
    told = os.dup(1)
    limit(int(given["seconds"]) + 1)
    home = os.getcwd()
    sys.stdin, sys.stdout, sys.stderr = io.StringIO(), io.StringIO(), io.StringIO()
    sys.setrecursionlimit(5000)
    sys.addaudithook(lambda event, details: refuse(event, details, home))
    exec(compile(given["program"], "program", "exec"), {"__name__": "program", "PROGRAM": given["answer"]})
    os.write(told, given["word"].encode())


def limit(seconds: int) -> None:
    """Limits of the process; the network goes where the system lets us leave it."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNET)
    limits = [(resource.RLIMIT_CPU, seconds), (resource.RLIMIT_FSIZE, FILES), (resource.RLIMIT_CORE, 0)]
    limits += [(resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_NOFILE, 64)]
    for which, most in limits:
        with suppress(ValueError, OSError):
            resource.setrlimit(which, (most, most))


def refuse(event: str, details: tuple[Any, ...], home: str) -> None:
    """Raise for the network, for other processes, and for changes outside of the program's own folder."""
    if event.startswith(REFUSED):
        raise PermissionError(f"{event} is not allowed here")
    if event == "open" and isinstance(details[0], str | bytes):
        flags = details[2] if len(details) > 2 and isinstance(details[2], int) else 0
        wanted = os.path.realpath(os.fsdecode(details[0]))
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and not wanted.startswith(home + os.sep):
            raise PermissionError(f"writing {wanted} is not allowed here")
    if event in ("os.remove", "os.rename", "os.rmdir", "os.chmod", "os.truncate", "shutil.rmtree"):
        wanted = os.path.realpath(os.fsdecode(details[0])) if isinstance(details[0], str | bytes) else ""
        if not wanted.startswith(home + os.sep):
            raise PermissionError(f"{event} is not allowed outside of {home}")


if __name__ == "__main__":
    main()
