"""trackio: a database on this machine (``TRACKIO_DIR``), or the Space or server that its own variables name."""

from __future__ import annotations

import secrets

from eagle3cli.training.trackers.tracker import TrackedRun, Tracker, require_package


def check() -> None:
    """Raise UsageError without the package."""
    require_package("trackio")


def start(run: TrackedRun) -> Tracker:
    """Begin a run or go on with it; trackio finds it by its name, which is therefore one of a kind."""
    import trackio

    opened = trackio.init(
        project=run.project,
        name=run.id or f"{run.name}-{secrets.token_hex(2)}",
        resume="allow",
        config=dict(run.config),
        embed=False,
        auto_log_gpu=False,
        auto_log_cpu=False,
    )
    # It writes twice a second; after a kill its database, not our note, says how far that came.
    written = getattr(opened, "_initial_last_step", run.last_step)
    return Tracker(
        id=str(opened.name),
        place=f"trackio show --project {run.project}",
        last_step=-1 if written is None else int(written),
        log=lambda step, numbers: opened.log(dict(numbers), step=step),
        close=lambda failed: opened.finish(),
    )
