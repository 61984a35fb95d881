"""Checkpoints are written while training goes on, one at a time; a full disk is tried again."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from inspect import signature
from pathlib import Path
from typing import Any

import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from torch.distributed.checkpoint.state_dict_saver import async_save

from eagle3cli.errors import Eagle3Error
from eagle3cli.models.checkpoint import save_draft
from eagle3cli.models.draft import Draft
from eagle3cli.runtime.distributed import Ranks
from eagle3cli.runtime.files import disk_error, remove, sync_tree
from eagle3cli.runtime.report import Reporter
from eagle3cli.training.checkpoint.load import (
    CHECKSUMS,
    PROGRESS,
    RESUME,
    checksums,
    kept_type,
    list_checkpoints,
    resumable,
    save_best,
)
from eagle3cli.training.checkpoint.state import TrainState
from eagle3cli.training.optim.optimizer import Optimizer

warnings.filterwarnings("ignore", "torch.distributed is disabled, unavailable or uninitialized")
ATTEMPTS = 3
"""How often a checkpoint that must be there is tried."""
PAUSE = 10.0
"""Seconds between two attempts."""


@dataclass
class Saver:
    """Writes the checkpoints of a run; every method must be called by all ranks."""

    run: Path
    keep: int
    ranks: Ranks
    report: Reporter
    pending: Future[None] | None = None
    pending_step: int = 0
    temporary: Path = Path()
    """Where the pending checkpoint is written until it is whole."""
    saved_step: int = -1
    """The newest step whose checkpoint is known to be whole."""
    group: Any = field(init=False)
    """Messages of its own, so that they never mix with those of the step that runs meanwhile."""
    worker: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "checkpoint"))

    def __post_init__(self) -> None:
        self.group = None if self.ranks.world_size == 1 else dist.new_group(backend="gloo")

    def begin(self, epoch: int, draft: Draft, optimizer: Optimizer, state: TrainState) -> None:
        """Copy the run's state and write it in the background, once the checkpoint before is written.

        Raises nothing where that failed: it is told, and this one is the next try.
        """
        error = self.wait()
        if error is not None:
            self.report.warn(f"the checkpoint of step {self.pending_step} was not written: {error}; trying again")
        name = f"epoch_{epoch}_step_{state.step}"
        self.temporary = self.run / "checkpoints" / f".{name}.tmp-{self._main_pid()}"
        if self.ranks.is_main:
            remove(self.temporary)
        with self.ranks.waiting(), optimizer.averaged():  # for the others' shards
            weights = draft.serving_state()
        counters = json.dumps(state.to_file(), indent=1) + "\n"
        self.ranks.barrier()
        tensors = resumable(draft, optimizer)
        writer = _writer(self.temporary / RESUME)
        written: Future[Any] = async_save(tensors, storage_writer=writer, process_group=self.group)  # type: ignore[assignment]
        self.pending_step = state.step
        self.pending = self.worker.submit(self._finish, written, self.temporary, name, draft, weights, counters)

    def wait(self) -> Eagle3Error | None:
        """Wait for the checkpoint that is being written; why it was not, if it was not: then nothing is left of it."""
        if self.pending is None:
            return None
        pending = self.pending
        self.pending = None
        failure: Eagle3Error | None = None
        try:
            pending.result()
        except (OSError, SafetensorError, CheckpointException, Eagle3Error) as error:
            failure = error if isinstance(error, Eagle3Error) else _write_error(error, self.run / "checkpoints")
        failure = self._agreed(failure)
        if failure is None:
            self.saved_step = self.pending_step
        elif self.ranks.is_main:
            remove(self.temporary)
        return failure

    def now(self, epoch: int, draft: Draft, optimizer: Optimizer, state: TrainState) -> None:
        """Have the run's state on the disk before going on; raises Eagle3Error where several attempts failed."""
        self.wait()
        if self.saved_step == state.step:
            return

        def write() -> Eagle3Error | None:
            self.begin(epoch, draft, optimizer, state)
            return self.wait()

        self._retry(write)

    def best(self, draft: Draft, *, now: bool) -> bool:
        """Replace ``best/`` by the draft as it is; whether that went well.

        ``now``: it has to be there; raises Eagle3Error where several attempts failed.
        """
        with self.ranks.waiting():  # for the others' shards
            weights = draft.serving_state()

        def write() -> Eagle3Error | None:
            failure = None
            if self.ranks.is_main:
                try:
                    save_best(self.run, draft, weights)
                except Eagle3Error as error:
                    failure = error
            return self._agreed(failure)

        if now:
            self._retry(write)
        elif (error := write()) is not None:
            self.report.warn(f"the best draft was not written: {error}; trying again after the next evaluation")
            return False
        return True

    def _retry(self, write: Callable[[], Eagle3Error | None]) -> None:
        for _ in range(1, ATTEMPTS):
            error = write()
            if error is None:
                return
            self.report.warn(f"{error.message}; trying again in {PAUSE:.0f} s")
            time.sleep(PAUSE)
        if (error := write()) is not None:
            raise error

    def _agreed(self, error: Eagle3Error | None) -> Eagle3Error | None:
        """This rank's error, or that another one has had one."""
        failed = self.ranks.all_reduce_max([error is not None])[0]
        return error or (
            Eagle3Error("cannot-write", "another rank could not write it", where=str(self.run)) if failed else None
        )

    def _main_pid(self) -> int:
        return int(self.ranks.all_reduce_max([os.getpid() if self.ranks.is_main else 0])[0])

    def _finish(
        self,
        written: Future[Any],
        temporary: Path,
        name: str,
        draft: Draft,
        weights: dict[str, Tensor],
        counters: str,
    ) -> None:
        """In the background: once all ranks have written, the first one makes a checkpoint of it."""
        written.result()
        if not self.ranks.is_main:
            return
        save_draft(temporary, weights, draft.config, dtype=kept_type(weights))
        (temporary / RESUME / PROGRESS).write_text(counters, encoding="utf-8")
        (temporary / RESUME / CHECKSUMS).write_text(json.dumps(checksums(temporary), indent=1) + "\n", encoding="utf-8")
        sync_tree(temporary)
        final = temporary.with_name(name)
        remove(final)
        temporary.rename(final)
        for old in list_checkpoints(self.run)[: -self.keep]:
            remove(old)


def _writer(folder: Path) -> HuggingFaceStorageWriter:
    """A file for every rank; torch 2.8 has another name for that."""
    known = signature(HuggingFaceStorageWriter).parameters
    apart = "save_distributed" if "save_distributed" in known else "save_sharded"
    return HuggingFaceStorageWriter(str(folder), **{apart: True})  # type: ignore[arg-type]


def _write_error(error: BaseException, where: Path) -> Eagle3Error:
    """The error that people see for what a write raised."""
    if isinstance(error, CheckpointException):
        error = next(iter(error.failures.values()))[0]
    return disk_error(error if isinstance(error, OSError) else OSError(str(error)), where)
