"""Steps without a finite gradient: left out, counted, and after a limit the end of the run with their rows on disk."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from eagle3cli.backends.batches.batch import TargetBatch, partition
from eagle3cli.errors import Eagle3Error
from eagle3cli.runtime.files import writing
from eagle3cli.runtime.report import Reporter
from eagle3cli.settings.training import TrainSettings
from eagle3cli.training.batches import Batches
from eagle3cli.training.checkpoint.state import TrainState


def skip_step(
    run: Path, state: TrainState, batches: Batches, norm: float, settings: TrainSettings, report: Reporter
) -> None:
    """Count the step that ``state`` has reached; every rank saves its own share of the batch to ``run/skipped/``.

    Raises Eagle3Error once ``max_skipped_steps`` have been left out.
    """
    state.skipped += 1
    ranks = batches.ranks
    step = state.step + 1
    rows = batches.sampler.batch(state.step)
    path = run / "skipped" / f"step_{step}.safetensors"
    own = own_share(batches, state.step)
    if own:
        save_share(path if ranks.world_size == 1 else path.with_suffix(f".rank_{ranks.rank}.safetensors"), own)
    ranks.barrier()  # what is told below is there
    saved = str(path)
    if ranks.world_size > 1:
        shares = partition(rows, batches.source.lengths, ranks.world_size)
        wrote = ", ".join(str(rank) for rank, share in enumerate(shares) if share)
        saved = f"{path.with_suffix('')}.rank_*.safetensors, written by ranks {wrote}"
    report.warn(f"step {step}: gradient norm {norm}; step left out, its batch is in {saved}")
    if state.skipped >= settings.max_skipped_steps:
        raise Eagle3Error(
            "not-finite-gradient",
            f"{state.skipped} steps had no finite gradient",
            where=f"step {step}, rows {rows} (saved in {saved})",
            fix="look at these rows with eagle3 view, or lower train.learning_rate",
        )


def own_share(batches: Batches, step: int) -> list[TargetBatch]:
    """This rank's micro batches of a 0-based step once more, in the computer's memory: the device holds one at a time.

    All ranks must ask for theirs: they may share the target.
    """
    states = map(partial(batches.states, step), batches.micro_batches(step))
    return [_on_cpu(batch) for batch in states if batch is not None]


def save_share(path: Path, share: Sequence[TargetBatch]) -> None:
    """Micro batches as one safetensors file; its metadata hold row numbers and sequence bounds."""
    tensors = {
        "token_ids": torch.cat([batch.token_ids_N for batch in share]),
        "loss_mask": torch.cat([batch.loss_mask_N for batch in share]),
        "aux": torch.cat([batch.aux_NC for batch in share]),
        "last": torch.cat([batch.last_NH for batch in share]),
        "top": torch.cat([batch.top_N for batch in share]),
    }
    lengths = [end - begin for batch in share for begin, end in pairwise(batch.cu_seqlens)]
    rows = [row for batch in share for row in batch.rows]
    metadata = {"rows": json.dumps(rows), "bounds": json.dumps(list(accumulate(lengths, initial=0)))}
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path, "wb") as f:
        f.write(save(tensors, metadata=metadata))


def _on_cpu(batch: TargetBatch) -> TargetBatch:
    def moved(tensor: Tensor) -> Tensor:
        return tensor.cpu().contiguous()

    return TargetBatch(
        token_ids_N=moved(batch.token_ids_N),
        loss_mask_N=moved(batch.loss_mask_N),
        cu_seqlens=batch.cu_seqlens,
        aux_NC=moved(batch.aux_NC),
        last_NH=moved(batch.last_NH),
        top_N=moved(batch.top_N),
        rows=batch.rows,
    )
