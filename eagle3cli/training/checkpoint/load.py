"""Checkpoints of a run: ``epoch_E_step_N/`` folders that SGLang loads as they are, each with the state to resume.

``resume/`` inside a checkpoint holds fp32 masters and moments as safetensors, in as many files as there were ranks
(``torch.distributed.checkpoint``; any number of ranks reads them back), the counters, and the checksum of every file.
Servers read only the folder's top level. ``best/`` is a copy without ``resume/``. ``save.py`` writes them.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.state_dict_loader import load

from eagle3cli.errors import UsageError
from eagle3cli.models.checkpoint import load_draft, save_draft
from eagle3cli.models.draft import Draft
from eagle3cli.runtime.distributed import Ranks
from eagle3cli.runtime.files import PATIENCE, check_removable, locked, read_json, refuse_existing, write_folder
from eagle3cli.runtime.manifest import remove_leftovers
from eagle3cli.runtime.report import Reporter
from eagle3cli.settings.training import TrainSettings
from eagle3cli.training.checkpoint.state import TrainState, read_state
from eagle3cli.training.optim.optimizer import Optimizer

NAME = re.compile(r"epoch_(\d+)_step_(\d+)")
RESUME = "resume"
PROGRESS = "progress.json"
CHECKSUMS = "checksums.json"
RUN_FILES = ("settings.toml", "log.txt", "metrics.jsonl", "checkpoints", "best")
"""What tells the folder of a run from another one."""
READ_AT_ONCE = 16 * 2**20


def check_place(settings: TrainSettings) -> None:
    """Raises UsageError where the run's folder may not be taken: with ``overwrite`` one of something else, else one of
    a run where ``resume`` is off. Changes nothing.
    """
    folder = settings.output_dir
    if settings.overwrite:
        if folder.is_dir() and any(folder.iterdir()) and not any((folder / name).exists() for name in RUN_FILES):
            raise UsageError(
                "foreign-files", "holds something else than a run", where=str(folder), fix="choose another --output-dir"
            )
        check_removable(folder)
    elif not settings.resume and list_checkpoints(folder):
        refuse_existing(folder, overwrite=False)


def make_place(settings: TrainSettings) -> None:
    """The run's folder, emptied with ``overwrite``; once nothing can refuse the run any more."""
    folder = settings.output_dir
    if settings.overwrite:
        refuse_existing(folder, overwrite=True)
    folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def held_place(settings: TrainSettings) -> Iterator[None]:
    """Within the block the run's folder, where there is one, is this process's alone; raises UsageError where another
    one trains there."""
    folder = settings.output_dir
    if not folder.is_dir():
        yield
        return
    fix = "wait for it to end, stop it, or choose another --output-dir"
    busy = UsageError("locked", "another training is under way there", where=str(folder), fix=fix)
    with locked(folder, busy, patience=PATIENCE):
        yield


def save_best(run: Path, draft: Draft, state: dict[str, Tensor]) -> None:
    """Replace ``best/`` by the draft with these weights (:meth:`Draft.serving_state`)."""
    write_folder(run / "best", lambda folder: save_draft(folder, state, draft.config, dtype=kept_type(state)))


def kept_type(state: dict[str, Tensor]) -> torch.dtype:
    """The type that a draft's weights are kept in: the one they are in."""
    return state["fc.weight"].dtype


def list_checkpoints(run: Path) -> list[Path]:
    """Whole checkpoints, oldest first."""
    matches = [(m, path) for path in (run / "checkpoints").glob("epoch_*") if (m := NAME.fullmatch(path.name))]
    return [path for _, path in sorted(matches, key=lambda pair: int(pair[0][2]))]


def checksums(folder: Path) -> dict[str, list[int]]:
    """Size and CRC-32 of every file below a folder, by its path there."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != CHECKSUMS)
    return {str(path.relative_to(folder)): [path.stat().st_size, _crc(path)] for path in files}


def _crc(path: Path) -> int:
    crc = 0
    with path.open("rb") as f:
        while part := f.read(READ_AT_ONCE):
            crc = zlib.crc32(part, crc)
    return crc


def latest_valid_checkpoint(run: Path, report: Reporter, ranks: Ranks) -> Path | None:
    """The newest checkpoint whose files are all as they were written; None where there is none.

    A damaged one is passed over, saying so. The ranks share the reading.
    """
    if ranks.is_main:
        for folder in (run, run / "checkpoints"):
            remove_leftovers(folder)
    ranks.barrier()
    for at, folder in enumerate(reversed(list_checkpoints(run))):
        reason = _damage(folder) if at % ranks.world_size == ranks.rank else None
        damaged = ranks.all_reduce_max([reason is not None])[0]
        if not damaged:
            return folder
        report.warn(f"{folder}: cannot be resumed ({reason or 'damaged'}); trying the one before")
    return None


def _damage(folder: Path) -> str | None:
    try:
        written = read_json(folder / RESUME / CHECKSUMS)
        read_json(folder / RESUME / PROGRESS)
        present = checksums(folder)
    except Exception as error:  # whatever is wrong with the files of a checkpoint, another one may be sound
        return str(error)
    different = [name for name, entry in written.items() if present.get(name) != entry]
    return f"damaged or missing: {', '.join(different[:3])}" if different else None


def saved_state(checkpoint: Path) -> TrainState:
    """The counters of a checkpoint."""
    return read_state(checkpoint / RESUME / PROGRESS)


def saved_vocab(checkpoint: Path) -> tuple[Tensor, Tensor]:
    """The draft vocabulary of a checkpoint, ``d2t`` and ``t2d``: a run keeps it, whatever more data would choose."""
    _, state = load_draft(checkpoint)
    return state["d2t"], state["t2d"]


def resume(folder: Path, draft: Draft, optimizer: Optimizer, report: Reporter) -> None:
    """Load a sound checkpoint into draft and optimizer, wherever their shards lie."""
    load(resumable(draft, optimizer), storage_reader=HuggingFaceStorageReader(str(folder / RESUME)))
    optimizer.sync_weights()
    report.info(f"going on from {folder.name}")


def resumable(draft: Draft, optimizer: Optimizer) -> dict[str, Any]:
    """The tensors that a run needs to go on, to be written or to be filled."""
    return {**optimizer.state(), "aux_scale": draft.aux_scale_C}
