"""How far the folder of a whole chain (`eagle3 run`) has come, told by its files."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle3cli.console.progress import duration
from eagle3cli.runs.find import STAGES
from eagle3cli.runs.state import DEAD, FINISHED, RUNNING, SILENT_SECONDS, STOPPED, State, alive, clock

PAUSE = 30.0
"""Seconds that may lie between two stages where their process cannot be asked."""


@dataclass(frozen=True)
class Chain:
    """A chain's stages, and whether it goes on."""

    told: str
    """Which stage it is in, and how many are done."""
    stage: str | None
    """The stage that has begun and is not done."""
    state: State


def chain_of(folder: Path) -> Chain:
    """The chain in ``folder`` as its files are now."""
    try:
        text = (folder / STAGES).read_text(encoding="utf-8")
        found = json.loads(text)["stages"].items()
        stages: dict[str, Mapping[str, Any]] = {name: stage for name, stage in found if isinstance(stage, dict)}
        since = (folder / STAGES).stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        stages, since = {}, time.time()
    done = [name for name, stage in stages.items() if stage.get("state") == "done"]
    stage = next((name for name in stages if name not in done), None)
    told = f"{len(done)} done" + (f", in {stage} for {duration(time.time() - since)}" if stage else "")
    last = stages[stage or done[-1]] if stages else {}
    return Chain(told, stage, _state(folder, last.get("process") or {}, stage, since))


def _state(folder: Path, process: Mapping[str, Any], stage: str | None, since: float) -> State:
    """The state of a chain whose newest stage was begun by ``process``, and told of at ``since``."""
    sign = max(since, newest_sign(folder))
    silent, lives = max(0.0, time.time() - sign), alive(process)
    if stage is None:
        report = folder / "report.json"
        if report.is_file() and report.stat().st_mtime >= since:
            return State(FINISHED, FINISHED, silent)
        if lives or (lives is None and silent <= PAUSE):
            return State(RUNNING, RUNNING, silent)
        return State(STOPPED, "stopped between two stages; eagle3 run goes on with it", silent)
    if lives is False or (lives is None and silent > SILENT_SECONDS):
        told = f"ended in {stage}, no sign of life since {clock(sign)}; eagle3 run goes on with it"
        return State(DEAD, told, silent)
    return State(RUNNING, RUNNING, silent)


def newest_sign(folder: Path) -> float:
    """When a file of the chain or of its stages' folders was written last, in seconds since 1970."""
    times = [0.0]
    for path in (*folder.iterdir(), *folder.glob("*/*")):
        try:
            times.append(path.stat().st_mtime)
        except OSError:
            continue
    return max(times)
