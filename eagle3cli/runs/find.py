"""Which run a person means: a folder of `train`, of `run` or of `bench`, a file in it, or the newest one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from eagle3cli.errors import DataError, UsageError
from eagle3cli.runs.folder import is_run
from eagle3cli.runs.state import last_write
from eagle3cli.training.history import json_objects

RUNS = Path("runs")
STAGES = "stages.json"
MAX_DEPTH = 3
MAX_NAMED = 8
RESULT_KEYS = {"task", "config", "temperature", "steps", "tokens_per_s"}
"""What every measured configuration holds."""
Kind = Literal["train", "chain", "bench"]


@dataclass(frozen=True)
class RunPath:
    """A run: its kind, and its folder or, for bench, its results file."""

    kind: Kind
    path: Path

    @property
    def name(self) -> str:
        """What people call it."""
        return (self.path.parent if self.kind == "bench" else self.path).resolve().name


def find_run(path: Path) -> RunPath:
    """The run at ``path``; raises UsageError, naming the runs that are there, where there is none."""
    if path.is_file():
        if _is_results(path):
            return RunPath("bench", path)
        path = path.parent
    if (path / STAGES).is_file():
        return RunPath("chain", path)
    if is_run(path):
        return RunPath("train", path)
    results = [file for file in sorted(path.glob("*.jsonl")) if _is_results(file)]
    if len(results) == 1:
        return RunPath("bench", results[0])
    if results:
        message = f"several results files: {', '.join(file.name for file in results)}"
        raise UsageError("no-such-run", message, where=str(path), fix="name one of them")
    raise UsageError(
        "no-such-run", "no run here" if path.exists() else "no such run", where=str(path), fix=_nearby(path)
    )


def newest_run() -> RunPath:
    """The run below ./runs that was written last; raises UsageError where there is none."""
    runs = list(run_folders(RUNS))
    if not runs:
        fix = "name its folder; runs are made by eagle3 train and eagle3 run"
        raise UsageError("no-such-run", "no run below ./runs", where="RUN", fix=fix)
    return find_run(max(runs, key=lambda run: max(last_write(run), last_write(run / "train"))))


def run_folders(root: Path, depth: int = MAX_DEPTH) -> Iterator[Path]:
    """Folders of runs, not those inside of another one."""
    try:
        inside = sorted(root.iterdir())
    except OSError:  # it has just been renamed or removed
        return
    for folder in (path for path in inside if path.is_dir() and not path.name.startswith(".")):
        if (folder / STAGES).is_file() or is_run(folder):
            yield folder
        elif depth > 1:
            yield from run_folders(folder, depth - 1)


def read_results(path: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Settings and measured configurations of a results file; raises DataError where there are none."""
    lines = list(json_objects(path.read_text(encoding="utf-8", errors="replace")))
    rows = [line for line in lines if line.get("kind") == "configuration" and line.keys() >= RESULT_KEYS]
    if not rows:
        fix = "wait for the first, or run eagle3 bench again: it goes on"
        raise DataError("no-rows", "no configuration has been measured yet", where=str(path), fix=fix)
    settings: Any = next((line.get("settings") for line in lines if line.get("kind") == "settings"), {})
    return settings if isinstance(settings, dict) else {}, rows


def _is_results(path: Path) -> bool:
    try:
        with path.open(encoding="utf-8") as file:
            first = next(json_objects(file.readline(1 << 20)), {})
    except (OSError, ValueError):
        return False
    return first.get("kind") == "settings" and isinstance(first.get("settings"), dict)


def _nearby(path: Path) -> str:
    """Runs that a person may have meant."""
    for root in (path, path.parent, RUNS):
        names = [str(run) for run in run_folders(root)] if root.is_dir() else []
        if names:
            more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
            return f"runs nearby: {', '.join(names[:MAX_NAMED])}{more}"
    return "name a folder of eagle3 train, eagle3 run or eagle3 bench"
