"""Checkpoints of a run: ``epoch_E_step_N/`` folders that SGLang loads as they are, each with the state to resume.

``resume/`` inside a checkpoint holds fp32 masters, moments and counters as safetensors and JSON; servers read only
the folder's top level. ``best/`` is a copy without it.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from eagle3cli.data.manifest import remove_leftovers
from eagle3cli.errors import UsageError
from eagle3cli.models.checkpoint import save_draft
from eagle3cli.models.draft import Draft
from eagle3cli.runtime.files import write_folder
from eagle3cli.runtime.report import Reporter
from eagle3cli.training.optimizer import Optimizer

NAME = re.compile(r"epoch_(\d+)_step_(\d+)")


@dataclass
class Progress:
    """Where a run stands, beside its weights."""

    step: int = 0
    """Finished optimiser steps."""
    seconds: float = 0.0
    """Training time, earlier sessions included."""
    best: float = 0.0
    """Best held-out acceptance length so far."""
    stale: int = 0
    """Evaluations since that one."""
    skipped: int = 0
    """Steps left out because their gradient was not finite."""
    rates: list[float] = field(default_factory=list)
    """Mean acceptance rate of every depth in the last step, where the loss follows it."""
    fingerprint: str = ""
    """What the run was started with; a checkpoint of another run is refused."""


def save_checkpoint(
    run: Path, epoch: int, draft: Draft, optimizer: Optimizer, progress: Progress, *, keep: int
) -> Path:
    """Write a checkpoint atomically and remove all but the newest ``keep``."""
    folder = run / "checkpoints" / f"epoch_{epoch}_step_{progress.step}"

    def fill(temporary: Path) -> None:
        save_draft(temporary, draft.serving_state(), draft.config, dtype=draft.fc.weight.dtype)
        resume = temporary / "resume"
        resume.mkdir()
        state = {name: value.cpu().contiguous() for name, value in optimizer.state().items()}
        try:
            save_file({**state, "aux_scale": draft.aux_scale_C.cpu()}, resume / "state.safetensors")
        except SafetensorError as error:  # what safetensors makes of a full disk
            raise OSError(str(error)) from error
        (resume / "progress.json").write_text(json.dumps(asdict(progress), indent=1) + "\n", encoding="utf-8")

    write_folder(folder, fill)
    for old in list_checkpoints(run)[:-keep]:
        shutil.rmtree(old)
    return folder


def save_best(run: Path, draft: Draft) -> None:
    """Replace ``best/`` by the draft as it is now."""
    write_folder(
        run / "best",
        lambda folder: save_draft(folder, draft.serving_state(), draft.config, dtype=draft.fc.weight.dtype),
    )


def list_checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    found = [(m, path) for path in (run / "checkpoints").glob("epoch_*") if (m := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, key=lambda pair: int(pair[0][2]))]


def resume(
    run: Path,
    draft: Draft,
    optimizer: Optimizer,
    fingerprint: str,
    report: Reporter,
    *,
    changed: Sequence[str] = (),
) -> Progress:
    """Load the newest usable checkpoint into draft and optimiser; a fresh Progress where there is none.

    A damaged checkpoint is passed over, saying so. Raises UsageError where the run was started with other settings.
    """
    for folder in (run, run / "checkpoints"):
        remove_leftovers(folder)
    for folder in reversed(list_checkpoints(run)):
        try:
            raw = json.loads((folder / "resume" / "progress.json").read_text(encoding="utf-8"))
            progress = Progress(**raw)
            state = load_file(folder / "resume" / "state.safetensors")
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            report.warn(f"{folder}: cannot be resumed ({error}); trying the one before")
            continue
        if progress.fingerprint != fingerprint:
            raise UsageError(
                "the run in this folder was started with other data, draft or training settings"
                + "".join(f"; {c}" for c in changed),
                where=str(run),
                fix="give another --output-dir, or --overwrite to start over",
            )
        _restore(draft, optimizer, state)
        report.info(f"going on from {folder.name}")
        return progress
    return Progress(fingerprint=fingerprint)


def _restore(draft: Draft, optimizer: Optimizer, state: dict[str, Tensor]) -> None:
    with torch.no_grad():
        draft.aux_scale_C.copy_(state.pop("aux_scale"))
    optimizer.load(state)
