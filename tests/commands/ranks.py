"""What the tests of several processes share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

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
            if b"commands.worker" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
        except OSError:
            continue
    return sorted(found)


def gone(processes: list[int]) -> bool:
    """Whether none of these runs any more."""
    return not any(Path(f"/proc/{p}").exists() for p in processes)
