"""How far the folder of a pipeline (`eagle3 run`) has come, told by its files."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle3cli.console.progress import duration
from eagle3cli.runs.find import STAGES
from eagle3cli.runs.state import DEAD, FINISHED, RUNNING, STOPPED, State, is_alive, is_gone, local_time

PAUSE = 30.0
"""Seconds that may lie between two stages where their process cannot be asked."""


@dataclass(frozen=True)
class PipelineProgress:
    """A pipeline's stages, and whether it goes on."""

    summary: str
    """Which stage it is in, and how many are done."""
    stage: str | None
    """The stage that has begun and is not done."""
    state: State


def pipeline_progress(folder: Path) -> PipelineProgress:
    """The pipeline in ``folder`` as its files are now."""
    try:
        text = (folder / STAGES).read_text(encoding="utf-8")
        content = json.loads(text)["stages"].items()
        stages: dict[str, Mapping[str, Any]] = {name: stage for name, stage in content if isinstance(stage, dict)}
        since = (folder / STAGES).stat().st_mtime
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        stages = {}
        since = time.time()
    done = [name for name, stage in stages.items() if stage.get("state") == "done"]
    stage = next((name for name in stages if name not in done), None)
    summary = f"{len(done)} done" + (f", in {stage} for {duration(time.time() - since)}" if stage else "")
    last = stages[stage or done[-1]] if stages else {}
    return PipelineProgress(summary, stage, _state(folder, last.get("process") or {}, stage, since))


def _state(folder: Path, process: Mapping[str, Any], stage: str | None, since: float) -> State:
    """The state of a pipeline whose newest stage was begun by ``process``, and told of at ``since``."""
    written = max(since, _last_write_below(folder))
    idle = max(0.0, time.time() - written)
    if stage is None:
        if _modified(folder / "report.json") >= since:
            return State(FINISHED, FINISHED, idle)
        living = is_alive(process)
        if living or (living is None and idle <= PAUSE):
            return State(RUNNING, RUNNING, idle)
        return State(STOPPED, "stopped between two stages; eagle3 run goes on with it", idle)
    if is_gone(process, idle):
        message = f"ended in {stage}, no sign of life since {local_time(written)}; eagle3 run goes on with it"
        return State(DEAD, message, idle)
    return State(RUNNING, RUNNING, idle)


def _last_write_below(folder: Path) -> float:
    """When a file of the pipeline or of its stages' folders was written last, in seconds since 1970."""
    inside = _entries(folder)
    below = [path for place in inside if place.is_dir() for path in _entries(place)]
    return max((_modified(path) for path in (*inside, *below)), default=0.0)


def _entries(folder: Path) -> list[Path]:
    """What a folder holds; nothing where it has just been renamed or removed."""
    try:
        return list(folder.iterdir())
    except OSError:
        return []


def _modified(path: Path) -> float:
    """When a file was written last, in seconds since 1970; 0 where there is none."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
