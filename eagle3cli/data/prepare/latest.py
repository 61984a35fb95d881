"""Where results of ``eagle3 prepare`` are, and which was made last."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from eagle3cli.settings.data import PrepareSettings

RESULTS = Path("cache/dataset")
MANIFEST = "prepare.json"
TRAIN = "train.jsonl"


def latest_result(options: PrepareSettings) -> Path | None:
    """The training rows in the folder that the settings name, else of the result that was made or found last."""
    if options.output_path is not None:
        folders = [options.output_path]
    else:
        made = [path for path in RESULTS.glob(f"*/{MANIFEST}") if (path.parent / TRAIN).is_file()]
        folders = [path.parent for path in sorted(made, key=_modified)]
    return next((folder / TRAIN for folder in reversed(folders) if (folder / TRAIN).is_file()), None)


def mark_as_latest(folder: Path) -> None:
    """A result that was asked for again is the one that goes on."""
    with suppress(OSError):  # nothing but the order of results would tell
        os.utime(folder / MANIFEST)


def _modified(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0
