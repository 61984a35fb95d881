"""Which run a person means: a folder of `train`, of `run` or of `bench`, a file in it, or the newest one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from eagle3cli.errors import DataError, UsageError
from eagle3cli.runs.folder import is_run
from eagle3cli.runs.state import last_sign

RUNS = Path("runs")
STAGES = "stages.json"
DEPTH, MOST_NAMED = 3, 8
NEEDED = {"task", "config", "temperature", "steps", "tokens_per_s"}
"""What every measured configuration tells."""
Kind = Literal["train", "chain", "bench"]


@dataclass(frozen=True)
class Found:
    """A run: its kind, and its folder or, for bench, its results file."""

    kind: Kind
    path: Path

    @property
    def name(self) -> str:
        """What people call it."""
        return (self.path.parent if self.kind == "bench" else self.path).resolve().name


def find(path: Path) -> Found:
    """The run at ``path``; raises UsageError, naming the runs that are there, where there is none."""
    if path.is_file():
        if _is_results(path):
            return Found("bench", path)
        path = path.parent
    if (path / STAGES).is_file():
        return Found("chain", path)
    if is_run(path):
        return Found("train", path)
    results = [file for file in sorted(path.glob("*.jsonl")) if _is_results(file)]
    if len(results) == 1:
        return Found("bench", results[0])
    if results:
        told = f"several results files: {', '.join(file.name for file in results)}"
        raise UsageError(told, where=str(path), fix="name one of them")
    raise UsageError("no run here" if path.exists() else "no such run", where=str(path), fix=_which(path))


def newest() -> Found:
    """The run below ./runs that was written last; raises UsageError where there is none."""
    runs = list(below(RUNS))
    if not runs:
        fix = "name its folder; runs are made by eagle3 train and eagle3 run"
        raise UsageError("no run below ./runs", where="RUN", fix=fix)
    return find(max(runs, key=lambda run: max(last_sign(run), last_sign(run / "train"))))


def below(root: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Folders of runs, not those inside of another one."""
    for folder in sorted(path for path in root.glob("*") if path.is_dir() and not path.name.startswith(".")):
        if (folder / STAGES).is_file() or is_run(folder):
            yield folder
        elif depth > 1:
            yield from below(folder, depth - 1)


def results_of(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Settings and measured configurations of a results file; raises DataError where there are none."""
    lines = list(_objects(path))
    rows = [line for line in lines if line.get("kind") == "configuration" and line.keys() >= NEEDED]
    if not rows:
        fix = "wait for the first, or run eagle3 bench again: it goes on"
        raise DataError("no configuration has been measured yet", where=str(path), fix=fix)
    found: Any = next((line.get("settings") for line in lines if line.get("kind") == "settings"), {})
    return found if isinstance(found, dict) else {}, rows


def _objects(path: Path) -> Iterator[dict[str, Any]]:
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            found = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            yield found


def _is_results(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            found = json.loads(file.readline(1 << 20))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(found, dict) and found.get("kind") == "settings" and isinstance(found.get("settings"), dict)


def _which(path: Path) -> str:
    """Runs that a person may have meant."""
    for root in (path, path.parent, RUNS):
        names = [str(run) for run in below(root)] if root.is_dir() else []
        if names:
            more = f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else ""
            return f"runs nearby: {', '.join(names[:MOST_NAMED])}{more}"
    return "name a folder of eagle3 train, eagle3 run or eagle3 bench"
