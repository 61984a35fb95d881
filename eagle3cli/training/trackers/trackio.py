"""trackio: a database on this machine (``TRACKIO_DIR``), or the Space or server that its own variables name."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eagle3cli.training.trackers.tracker import Opening, need


def ready() -> None:
    """Raise UsageError without the package."""
    need("trackio", "track-trackio")


class Trackio:
    """A run of trackio, found again by its name, which is therefore one of a kind."""

    session: Path | None = None

    def __init__(self, run: Any, project: str, last_step: int) -> None:
        self.run, self.id, self.last_step = run, str(run.name), last_step
        self.place = f"trackio show --project {project}"

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """One point of every curve."""
        self.run.log(dict(numbers), step=step)

    def close(self, *, failed: bool) -> None:
        """Write what is left."""
        self.run.finish()


def open(opening: Opening) -> Trackio:
    """Begin a run or go on with it."""
    import trackio

    run = trackio.init(
        project=opening.project,
        name=opening.id or f"{opening.name}-{secrets.token_hex(2)}",
        resume="allow",
        config=dict(opening.config),
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    # It writes twice a second; after a kill its database, not our note, says how far that came.
    written = getattr(run, "_initial_last_step", opening.last_step)
    return Trackio(run, opening.project, -1 if written is None else int(written))
