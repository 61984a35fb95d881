"""SwanLab. ``SWANLAB_MODE=offline`` keeps all in the run's folder, for ``swanlab sync``."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eagle3cli.errors import UsageError
from eagle3cli.training.trackers.tracker import Opening, has_login, need

WITHOUT_NETWORK = ("offline", "local", "disabled")


def ready() -> None:
    """Raise UsageError without the package, or without a key where one is needed."""
    need("swanlab", "track-swanlab")
    if os.environ.get("SWANLAB_MODE") in WITHOUT_NETWORK:
        return
    home = Path(os.environ.get("SWANLAB_ROOT") or os.environ.get("SWANLAB_SAVE_DIR") or Path.home() / ".swanlab")
    address = os.environ.get("SWANLAB_API_HOST", "https://api.swanlab.cn")
    if not has_login("SWANLAB_API_KEY", [Path(".swanlab", ".netrc"), home / ".netrc"], address):
        fix = "set SWANLAB_API_KEY, or SWANLAB_MODE=offline to keep the run on this disk until `swanlab sync`"
        raise UsageError("no key of swanlab in the environment", where="--report-to", fix=fix)


class SwanLab:
    """A run of SwanLab."""

    def __init__(self, run: Any, folder: Path, last_step: int) -> None:
        self.run, self.id, self.last_step = run, str(run.id), last_step
        kept_here = run.mode in ("offline", "local")
        self.session = Path(run.dir) if kept_here else None
        shown = {"offline": f"swanlab sync {folder}/run-*-{self.id}", "local": f"swanlab watch {folder}"}
        self.place = str(run.url) if run.mode == "online" else shown.get(run.mode, "disabled")

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """One point of every curve."""
        self.run.log(dict(numbers), step=step)

    def close(self, *, failed: bool) -> None:
        """Send what is left, and end the run."""
        if failed:
            self.run.finish(state="crashed", error="see log.txt of the run")
        else:
            self.run.finish()


def open(opening: Opening) -> SwanLab:
    """Begin a run or go on with it; console, code and git state stay here."""
    import swanlab

    settings = swanlab.Settings(
        interactive=False,
        terminal={"proxy_type": "none"},
        probe={"git": False, "requirements": False, "runtime": False},
    )
    run = swanlab.init(
        project=opening.project,
        name=opening.name,
        id=opening.id or secrets.token_hex(4),
        resume="allow",
        log_dir=str(opening.folder),
        config=dict(opening.config),
        settings=settings,
    )
    return SwanLab(run, opening.folder, opening.last_step)
