"""Folders that a person may mean: drafts below ./runs, runs, and models that the hub's cache holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

DEPTH, MOST = 4, 200
RUNS = "runs"
RUN_FILES = ("metrics.jsonl", "stages.json", "report.json")


def drafts(begun: str) -> list[str]:
    """Folders with an EAGLE-3 draft, newest first, below the folder that ``begun`` names, else below ./runs."""
    found = [folder for folder in _below(_root(begun)) if _is_draft(folder)]
    return [str(folder) for folder in sorted(found, key=lambda folder: -folder.stat().st_mtime)]


def runs(begun: str) -> list[str]:
    """Folders of training runs and of whole chains, newest first."""
    found = [folder for folder in _below(_root(begun)) if any((folder / name).is_file() for name in RUN_FILES)]
    return [str(folder) for folder in sorted(found, key=lambda folder: -folder.stat().st_mtime)]


def cached_models() -> list[str]:
    """Models of the hub that were downloaded before: OWNER/NAME."""
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    cache = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    return sorted(path.name.removeprefix("models--").replace("--", "/") for path in cache.glob("models--*--*"))


def _root(begun: str) -> Path:
    folder = begun.rpartition("/")[0]
    return Path(folder) if folder and Path(folder).is_dir() else Path(RUNS)


def _below(root: Path) -> Iterator[Path]:
    """Folders down to DEPTH, at most MOST of them; names with a dot in front are left out."""
    level = [root] if root.is_dir() else []
    seen = 0
    for _ in range(DEPTH + 1):
        yield from level
        seen += len(level)
        if seen > MOST:
            return
        level = [inner for folder in level for inner in _inner(folder)][:MOST]


def _inner(folder: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder) if entry.name[0] != "." and entry.is_dir()]
    except OSError:
        return []


def _is_draft(folder: Path) -> bool:
    try:
        return b"Eagle3" in (folder / "config.json").read_bytes() and any(folder.glob("*.safetensors"))
    except OSError:
        return False
