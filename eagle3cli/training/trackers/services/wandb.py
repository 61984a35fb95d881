"""Weights & Biases. ``WANDB_MODE=offline`` keeps all in the run's folder, for ``wandb sync``."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from eagle3cli.errors import UsageError
from eagle3cli.training.trackers.tracker import TrackedRun, Tracker, has_login, require_package

PATIENCE = 30.0
"""Seconds that opening and closing may take."""
WITHOUT_NETWORK = ("offline", "dryrun", "disabled")


def check() -> None:
    """Raise UsageError without the package, or without a key where one is needed."""
    require_package("wandb")
    if os.environ.get("WANDB_MODE") in WITHOUT_NETWORK:
        return
    address = os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")
    files = [Path(os.environ.get("NETRC") or "~/.netrc").expanduser(), Path.home() / "_netrc"]
    if not has_login("WANDB_API_KEY", files, address) and "WANDB_IDENTITY_TOKEN_FILE" not in os.environ:
        fix = "set WANDB_API_KEY, or WANDB_MODE=offline to keep the run on this disk until `wandb sync`"
        raise UsageError("missing-key", "no key of wandb in the environment", where="--report-to", fix=fix)


def start(run: TrackedRun) -> Tracker:
    """Begin a run or go on with it; console, code and git state stay here.

    A number's x axis is our step, so that sessions need not count theirs on.
    """
    import wandb

    settings = wandb.Settings(
        console="off", disable_git=True, save_code=False, silent=True, symlink=False, init_timeout=PATIENCE,
        finish_timeout=PATIENCE, finish_timeout_raises=True,
    )  # fmt: skip
    run.folder.mkdir(parents=True, exist_ok=True)
    try:
        opened = wandb.init(
            project=run.project,
            name=run.name,
            id=run.id or secrets.token_hex(4),
            resume="allow",
            dir=str(run.folder),
            config=dict(run.config),
            settings=settings,
        )
    except wandb.errors.CommError as error:
        reason = str(error).split("\n")[0]
        raise ConnectionError(f"{reason} (without network: WANDB_MODE=offline, then `wandb sync`)") from error
    opened.define_metric("*", step_metric="step")
    offline = bool(opened.offline)
    folder = Path(opened.dir).parent
    return Tracker(
        id=str(opened.id),
        place=f"wandb sync {folder.parent}/offline-run-*-{opened.id}" if offline else str(opened.url),
        last_step=run.last_step if offline else int(opened.summary.get("step", -1)),
        log=lambda step, numbers: opened.log({"step": step, **numbers}),
        close=lambda failed: opened.finish(exit_code=int(failed)),
        session=folder if offline else None,
    )
