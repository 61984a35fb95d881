"""Steps without a finite gradient: left out, counted, and after a limit the end of the run with their rows on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save

from eagle3cli.backends.batches.batch import BatchSource, TargetBatch
from eagle3cli.errors import Eagle3Error
from eagle3cli.runtime.distributed import Ranks
from eagle3cli.runtime.files import writing
from eagle3cli.runtime.report import Reporter
from eagle3cli.settings.training import TrainSettings
from eagle3cli.training.checkpoint.state import TrainState


def skip_step(
    run: Path,
    state: TrainState,
    source: BatchSource,
    rows: Sequence[int],
    norm: float,
    settings: TrainSettings,
    report: Reporter,
    ranks: Ranks,
) -> None:
    """Count the step that ``state`` has reached and save its batch to ``run/skipped/``.

    Raises Eagle3Error once ``max_skipped_steps`` have been left out.
    """
    state.skipped += 1
    step = state.step + 1
    path = run / "skipped" / f"step_{step}.safetensors"
    batch = source.batch(rows)  # of all ranks: they may share the target
    if ranks.is_main:
        save_batch(path, batch, rows)
    report.warn(f"step {step}: gradient norm {norm}; step left out, its batch is in {path}")
    if state.skipped >= settings.max_skipped_steps:
        raise Eagle3Error(
            f"{state.skipped} steps had no finite gradient",
            where=f"step {step}, rows {list(rows)} (saved in {path})",
            fix="look at these rows with eagle3 view, or lower train.learning_rate",
        )


def save_batch(path: Path, batch: TargetBatch, rows: Sequence[int]) -> None:
    """One batch as safetensors; its metadata hold row numbers and sequence bounds."""
    tensors = {
        "token_ids": batch.token_ids_N,
        "loss_mask": batch.loss_mask_N,
        "aux": batch.aux_NC,
        "last": batch.last_NH,
        "top": batch.top_N,
    }
    metadata = {"rows": json.dumps(list(rows)), "bounds": json.dumps(list(batch.cu_seqlens))}
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path, "wb") as f:
        f.write(save({name: tensor.cpu().contiguous() for name, tensor in tensors.items()}, metadata=metadata))
