"""What the tests of several processes share."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

MARK = "EAGLE3_TEST_MARK"
CALM = ("--draft-init", "random", "--learning-rate", "1e-4", "--log-interval", "1")
"""Weights that rounding does not throw off their way."""


def events(run: Path) -> list[dict[str, Any]]:
    """All lines of a run's history."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def assert_same_course(one: Path, other: Path) -> None:
    """Losses, gradient norms and held-out acceptance to rounding."""
    for a, b in zip(events(one), events(other), strict=True):
        assert (a["event"], a["step"]) == (b["event"], b["step"])
        if a["event"] == "step":
            for name in ("loss", "grad_norm", "depth_losses", "accuracy"):
                assert a[name] == pytest.approx(b[name], rel=1e-5), (a["step"], name)
        else:
            assert a["acceptance_length"] == pytest.approx(b["acceptance_length"])
            assert a["by_reply_position"] == pytest.approx(b["by_reply_position"])


def ranks_of(pid: int) -> list[int]:
    """Processes that a launcher has started, the oldest first."""
    found = []
    try:
        children = [p for file in Path(f"/proc/{pid}/task").glob("*/children") for p in file.read_text().split()]
    except OSError:
        return []
    for child in children:
        try:
            if b"cli.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
        except OSError:
            continue
    return sorted(found)


def gone(processes: list[int]) -> bool:
    """Whether none of these runs any more."""
    return not any(Path(f"/proc/{p}").exists() for p in processes)


def lines(run: Path) -> int:
    """Whole lines of a run's history."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


class Session:
    """One run of the command on the folder ``killed``, to be stopped in any way."""

    def __init__(self, place: Path, *words: str) -> None:
        self.run, self.mark = place / "killed", uuid.uuid4().hex
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", MARK: self.mark}
        command = [sys.executable, "-m", "eagle3cli", "train", "--output-dir", str(self.run), *words]
        self.log = place / f"{self.mark}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, cwd=place, env=environment, stdout=log, stderr=subprocess.STDOUT)

    def wait(self) -> int:
        """The exit code, once nothing of this session is left."""
        code = self.process.wait(timeout=300)
        deadline = time.monotonic() + 60
        while left := self.left():
            assert time.monotonic() < deadline, f"orphans: {left}"
            time.sleep(0.05)
        return code

    def left(self) -> list[str]:
        """Processes that this session has started, and theirs."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"{MARK}={self.mark}".encode() in (folder / "environ").read_bytes():
                    found.append((folder / "cmdline").read_text().replace("\0", " "))
            except OSError:  # it has ended meanwhile, or is somebody else's
                continue
        return found

    def until(self, condition: Callable[[], bool]) -> None:
        """Wait for a moment, or for the end."""
        deadline = time.monotonic() + 300
        while self.process.poll() is None and not condition():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.001)
