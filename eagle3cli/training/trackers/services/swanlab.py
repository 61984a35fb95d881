"""SwanLab. ``SWANLAB_MODE=offline`` keeps all in the run's folder, for ``swanlab sync``."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from eagle3cli.errors import UsageError
from eagle3cli.training.trackers.tracker import TrackedRun, Tracker, has_login, require_package

WITHOUT_NETWORK = ("offline", "local", "disabled")


def check() -> None:
    """Raise UsageError without the package, or without a key where one is needed."""
    require_package("swanlab")
    if os.environ.get("SWANLAB_MODE") in WITHOUT_NETWORK:
        return
    home = Path(os.environ.get("SWANLAB_ROOT") or os.environ.get("SWANLAB_SAVE_DIR") or Path.home() / ".swanlab")
    address = os.environ.get("SWANLAB_API_HOST", "https://api.swanlab.cn")
    if not has_login("SWANLAB_API_KEY", [Path(".swanlab", ".netrc"), home / ".netrc"], address):
        fix = "set SWANLAB_API_KEY, or SWANLAB_MODE=offline to keep the run on this disk until `swanlab sync`"
        raise UsageError("missing-key", "no key of swanlab in the environment", where="--report-to", fix=fix)


def start(run: TrackedRun) -> Tracker:
    """Begin a run or go on with it; console, code and git state stay here."""
    import swanlab

    opened = swanlab.init(
        project=run.project,
        name=run.name,
        id=run.id or secrets.token_hex(4),
        resume="allow",
        log_dir=str(run.folder),
        config=dict(run.config),
        settings=swanlab.Settings(
            interactive=False,
            terminal={"proxy_type": "none"},
            probe={"git": False, "requirements": False, "runtime": False},
        ),
    )
    places = {"offline": f"swanlab sync {run.folder}/run-*-{opened.id}", "local": f"swanlab watch {run.folder}"}
    failure = {"state": "crashed", "error": "see log.txt of the run"}
    return Tracker(
        id=str(opened.id),
        place=str(opened.url) if opened.mode == "online" else places.get(opened.mode, "disabled"),
        last_step=run.last_step,
        log=lambda step, numbers: opened.log(dict(numbers), step=step),
        close=lambda failed: opened.finish(**(failure if failed else {})),
        session=Path(opened.dir) if opened.mode in places else None,
    )
