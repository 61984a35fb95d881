"""Folders that a person may mean: drafts below ./runs, runs, and models that the hub's cache holds."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

DEPTH = 4
MOST = 200
RUNS = "runs"
RUN_FILES = ("metrics.jsonl", "stages.json", "report.json")


def drafts(prefix: str) -> list[str]:
    """Folders with an EAGLE-3 draft, newest first, below the folder that ``prefix`` names, else below ./runs."""
    return _newest_first(prefix, _is_draft)


def runs(prefix: str) -> list[str]:
    """Folders of training runs and of whole chains, newest first."""
    return _newest_first(prefix, lambda folder: any((folder / name).is_file() for name in RUN_FILES))


def cached_models(prefix: str) -> list[str]:
    """Models of the hub that were downloaded before: OWNER/NAME."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    return sorted(path.name.removeprefix("models--").replace("--", "/") for path in cache.glob("models--*--*"))


def _newest_first(prefix: str, matches: Callable[[Path], bool]) -> list[str]:
    """The folders that match down to DEPTH, of about MOST; names with a dot in front are left out."""
    parent = prefix.rpartition("/")[0]
    root = Path(parent) if parent and Path(parent).is_dir() else Path(RUNS)
    level = [root] if root.is_dir() else []
    folders = list(level)
    for _ in range(DEPTH):
        if len(folders) > MOST:
            break
        level = [inner for folder in level for inner in _subfolders(folder)][:MOST]
        folders += level
    return [str(folder) for folder in sorted(filter(matches, folders), key=_modified, reverse=True)]


def _modified(folder: Path) -> float:
    try:
        return folder.stat().st_mtime
    except OSError:  # it was removed just now, as old checkpoints are
        return 0.0


def _subfolders(folder: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder) if entry.name[0] != "." and entry.is_dir()]
    except OSError:
        return []


def _is_draft(folder: Path) -> bool:
    try:
        return b"Eagle3" in (folder / "config.json").read_bytes() and any(folder.glob("*.safetensors"))
    except OSError:
        return False
