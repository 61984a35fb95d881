"""Runs code that a model wrote, in a process of its own with limits on time, memory, files and the network.

It keeps mistakes from doing harm; it is no wall against code that means to escape. So nothing runs unless asked for.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress

from eagle3cli.serving.bench.sandbox import sandboxed

SECONDS = 10.0
"""Wall-clock seconds a program may take; its processor time is limited, too."""


def passes(program: str, answer: str = "", seconds: float = SECONDS) -> bool:
    """Whether the program runs to its end without an error. ``answer`` is at hand in it as ``PROGRAM``.

    The end is told by a secret word, so that a program that ends early by itself has not passed.
    """
    word = secrets.token_hex(16)
    request = json.dumps({"program": program, "answer": answer, "word": word, "seconds": seconds})
    with tempfile.TemporaryDirectory(prefix="eagle3-sandbox-") as folder:
        process = subprocess.Popen(
            [sys.executable, "-I", "-B", sandboxed.__file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "OMP_NUM_THREADS": "1"},
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(request.encode(), timeout=seconds + 5)
        except subprocess.TimeoutExpired:
            return False
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return output.decode("utf-8", "replace").endswith(word)
