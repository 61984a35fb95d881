"""Commands in several processes each, forked from one that has imported all: Python starts once, not once for each.

    python -m tests.commands.train.forked < cases.json

A case is ``[processes, [word, ...]]``, and its processes are what torchrun would start. What they say goes to standard
error; the exit status is that of the first case of which one fails.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.conftest import ROOT

Case = tuple[int, Sequence[str]]


def run_forked(cases: Sequence[Case], folder: Path, timeout: float = 560) -> None:
    """Run all cases in ``folder``, one after the other. Raises AssertionError where one fails."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.commands.train.forked"],
        input=json.dumps(cases),
        cwd=folder,
        env=environment,
        capture_output=True,
        encoding="utf-8",
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _free_port() -> int:
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port: int = place.getsockname()[1]
        return port


def _rank(rank: int, world_size: int, port: int, words: Sequence[str]) -> int:
    from eagle3cli.cli.main import main

    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
    os.environ.update({name: str(value) for name, value in (names | {"MASTER_PORT": port}).items()})
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    return main(words)


def _fork(world_size: int, words: Sequence[str]) -> int:
    """The exit status of a case: that of a process which failed, if one did."""
    port = _free_port()
    children = []
    for rank in range(world_size):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                code = _rank(rank, world_size, port, words)
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    return next((code for code in codes if code), 0)


def main() -> int:
    """Run the cases of standard input."""
    import transformers.models.llama.modeling_llama  # noqa: F401

    import eagle3cli.commands.train
    import eagle3cli.training.build  # noqa: F401

    os.dup2(2, 1)
    for world_size, words in json.loads(sys.stdin.read()):
        if code := _fork(world_size, words):
            print(f"failed with {code}: {world_size} processes of {' '.join(words)}", file=sys.stderr)
            return code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
