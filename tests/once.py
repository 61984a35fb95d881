"""Things that are made once in a whole test run and shared by its workers: read them, do not write to them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import filelock


def once(folder: Path, name: str, make: Callable[[Path], object]) -> Path:
    """``folder/name``, made by ``make(folder/name)`` by whichever worker asks first; the others wait for it.

    ``folder`` is the same for all workers of one run (the fixture ``shared_folder``).
    """
    place = folder / name
    done = folder / f"{name}.done"
    place.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder / f"{name}.lock"):
        if not done.exists():
            make(place)
            done.touch()
    return place
