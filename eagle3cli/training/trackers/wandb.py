"""Weights & Biases. ``WANDB_MODE=offline`` keeps all in the run's folder, for ``wandb sync``."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eagle3cli.errors import UsageError
from eagle3cli.training.trackers.tracker import Opening, has_login, need

PATIENCE = 30.0
"""Seconds that opening and closing may take."""
WITHOUT_NETWORK = ("offline", "dryrun", "disabled")


def ready() -> None:
    """Raise UsageError without the package, or without a key where one is needed."""
    need("wandb", "track-wandb")
    if os.environ.get("WANDB_MODE") in WITHOUT_NETWORK:
        return
    address = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    files = [Path(os.environ.get("NETRC") or "~/.netrc").expanduser(), Path.home() / "_netrc"]
    if not has_login("WANDB_API_KEY", files, address) and "WANDB_IDENTITY_TOKEN_FILE" not in os.environ:
        fix = "set WANDB_API_KEY, or WANDB_MODE=offline to keep the run on this disk until `wandb sync`"
        raise UsageError("no key of wandb in the environment", where="--report-to", fix=fix)


class Wandb:
    """A run of wandb. A number's x axis is our step, so that sessions need not count theirs on."""

    def __init__(self, run: Any, last_step: int) -> None:
        self.run, self.id, self.last_step = run, str(run.id), last_step
        folder = Path(run.dir).parent
        self.session = folder if run.offline else None
        self.place = f"wandb sync {folder.parent}/offline-run-*-{self.id}" if run.offline else str(run.url)

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        """One row of the run's history."""
        self.run.log({"step": step, **numbers})

    def close(self, *, failed: bool) -> None:
        """Wait for the last rows to be sent, but not longer than PATIENCE."""
        self.run.finish(exit_code=int(failed))


def open(opening: Opening) -> Wandb:
    """Begin a run or go on with it; console, code and git state stay here."""
    import wandb

    settings = wandb.Settings(
        console="off", disable_git=True, save_code=False, silent=True, symlink=False, init_timeout=PATIENCE,
        finish_timeout=PATIENCE, finish_timeout_raises=True,
    )  # fmt: skip
    opening.folder.mkdir(parents=True, exist_ok=True)
    try:
        run = wandb.init(
            project=opening.project,
            name=opening.name,
            id=opening.id or secrets.token_hex(4),
            resume="allow",
            dir=str(opening.folder),
            config=dict(opening.config),
            settings=settings,
        )
    except wandb.errors.CommError as error:
        reason = str(error).split("\n")[0]
        raise ConnectionError(f"{reason} (without network: WANDB_MODE=offline, then `wandb sync`)") from error
    run.define_metric("*", step_metric="step")
    last = opening.last_step if run.offline else int(run.summary.get("step", -1))
    return Wandb(run, last)
