"""The training loop.

A :class:`Trainer` is what :func:`eagle3cli.training.build.build` put together; :func:`train` is the loop. It does not
know whether states come from a live target or from disk, nor what a terminal or a tracker is: listeners do.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eagle3cli.backends.batches.batch import BatchSource
from eagle3cli.backends.target.logits import Head
from eagle3cli.models.draft import Draft
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.stop import Stop, stopped
from eagle3cli.settings.training import TrainSettings
from eagle3cli.training.checkpoint.load import Progress
from eagle3cli.training.checkpoint.save import Saver
from eagle3cli.training.eval.evaluate import Evaluation, evaluate
from eagle3cli.training.metrics import Window
from eagle3cli.training.optim.optimizer import Optimizer
from eagle3cli.training.optim.schedule import learning_rate
from eagle3cli.training.parallel import Spread
from eagle3cli.training.sampler import Order
from eagle3cli.training.step import optimise
from eagle3cli.training.timers import Stopwatch, shares
from eagle3cli.training.ttt.model import Forward

SERVED_DEPTHS = 5
"""Held-out acceptance is measured for at least this many draft steps, whatever the unroll."""

BUDGET_TICKS = 1_000_000
"""Steps that a whole time budget counts as in the schedule."""

Listener = Callable[[str, dict[str, Any]], None]
"""Called with an event (``step`` or ``eval``) and its numbers."""


@dataclass
class Trainer:
    """All parts of a run, in the order in which data pass through them."""

    settings: TrainSettings
    output_dir: Path
    source: BatchSource
    eval_source: BatchSource | None
    order: Order
    total_steps: int | None
    """None under a time budget."""
    budget_seconds: float | None
    draft: Draft
    embedding_VH: Tensor
    teacher_head: Head
    """The target's head, restricted to the draft vocabulary."""
    whole_head: Head | None
    """The target's whole head; only losses with acceptance rates read it."""
    forward: Forward
    """Unroll and loss of the draft."""
    spread: Spread
    """How the draft lies on the ranks."""
    optimizer: Optimizer
    progress: Progress
    saver: Saver
    report: Reporter
    listeners: Sequence[Listener] = ()
    window: Window = field(default_factory=Window)
    doing: str = "the first step"
    """What is under way, for people."""
    clock: Stopwatch = field(default_factory=Stopwatch)
    best_owed: bool = False
    """Whether the best draft could not be written."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Counts of the data, for the report."""


def train(trainer: Trainer, stop: Stop) -> Evaluation | None:
    """Run to the end of the schedule, the time budget or a stop signal; returns the last evaluation."""
    settings, progress = trainer.settings, trainer.progress
    began = time.perf_counter() - progress.seconds
    result, norm = None, torch.zeros(())
    trainer.window.began = progress.seconds
    with trainer.report.task("train", total=trainer.total_steps, unit="steps", done=progress.step) as task:
        asked = _agree(trainer, began, stop)
        while not asked and not _finished(trainer):
            rate = _learning_rate(trainer)
            trainer.doing = f"step {progress.step + 1}"
            trainer.spread.ranks.at(trainer.doing)
            norm = optimise(trainer, trainer.order.batch(progress.step), rate)
            progress.step += 1
            asked = _agree(trainer, began, stop)
            if progress.step % settings.log_interval == 0:
                task.advance(0, **_log(trainer, rate, norm))
            if progress.step % settings.eval_interval == 0:
                result = _evaluate(trainer)
                began = time.perf_counter() - progress.seconds
            if not asked and progress.step % settings.save_interval == 0:
                save(trainer)
            task.advance(1)
        if asked:
            save(trainer, now=True)
            saved = (
                f"saved step {progress.step} in {trainer.output_dir}" if progress.step else "nothing was trained yet"
            )
            raise stopped(asked, saved)
        if progress.step % settings.log_interval and trainer.window.kept:
            task.advance(0, **_log(trainer, _learning_rate(trainer), norm))
    if progress.step % settings.eval_interval or result is None or trainer.best_owed:
        result = _evaluate(trainer, last=True)
    save(trainer, now=True)
    return result


def _agree(trainer: Trainer, began: float, stop: Stop) -> int | None:
    """The stop signal that any rank has got; the run's time becomes the longest of theirs.

    All ranks act on what is returned here, never on what has reached one of them since.
    """
    seconds = time.perf_counter() - began
    with trainer.clock.part("waiting"):
        trainer.progress.seconds, asked = trainer.spread.ranks.all_reduce_max([seconds, stop.requested or 0])
    return int(asked) or None


def save(trainer: Trainer, *, now: bool = False) -> None:
    """Write a checkpoint of the run as it is: in the background, or ``now``."""
    epoch = trainer.order.epoch_of(max(0, trainer.progress.step - 1))
    trainer.progress.window = trainer.window.kept_back(trainer.spread.ranks, trainer.settings.ttt_length)
    write = trainer.saver.now if now else trainer.saver.begin
    write(epoch, trainer.draft, trainer.optimizer, trainer.progress)


def _finished(trainer: Trainer) -> bool:
    early, stale = trainer.settings.early_stop, trainer.progress.stale
    if early is not None and stale >= early:
        trainer.report.info(f"stopped early: no better acceptance length in {stale} evaluations")
        return True
    if trainer.total_steps is not None and trainer.progress.step >= trainer.total_steps:
        return True
    return trainer.budget_seconds is not None and trainer.progress.seconds >= trainer.budget_seconds


def _learning_rate(trainer: Trainer) -> float:
    """The schedule's rate; under a time budget the share of the time that is spent stands for the step."""
    settings, step = trainer.settings, trainer.progress.step
    total = trainer.total_steps or BUDGET_TICKS
    if trainer.budget_seconds is not None:
        step = max(step if trainer.total_steps else 0, int(total * trainer.progress.seconds / trainer.budget_seconds))
    return learning_rate(
        step,
        peak=settings.learning_rate,
        total=total,
        warmup_ratio=settings.warmup_ratio,
        shape=settings.lr_schedule,
        floor_ratio=settings.min_lr_ratio,
    )


def _log(trainer: Trainer, rate: float, norm: Tensor) -> dict[str, object]:
    """Read the window back once, tell the listeners, and return what the progress bar shows."""
    window, progress, ranks = trainer.window, trainer.progress, trainer.spread.ranks
    trainer.window, spent = Window(began=progress.seconds), trainer.clock.read()
    if not window.kept:
        return {"loss": "no rows with loss"}
    depths, seconds = trainer.settings.ttt_length, progress.seconds - window.began
    summed, losses, right, (*parts, processor) = window.totals(ranks, depths, spent)
    total, loss_T = summed / window.divided_by, [loss / window.divided_by for loss in losses]
    accuracy = [c / max(1, n) for c, n in zip(right, window.counted, strict=True)]
    numbers = {
        "step": progress.step,
        "epoch": trainer.order.epoch_of(progress.step - 1),
        "loss": total,
        "depth_losses": loss_T,
        "accuracy": accuracy,
        "grad_norm": float(norm),
        "learning_rate": rate,
        "tokens": window.tokens,
        "tokens_per_s": window.tokens / max(1e-9, seconds),
        "time": shares([part / ranks.world_size for part in parts], seconds),
        "processor_seconds": processor,
        "peak_memory": trainer.clock.peak_memory(),
        "steps_left_out": progress.skipped,
        "seconds": progress.seconds,
    }
    for listener in trainer.listeners:
        listener("step", numbers)
    return {"loss": f"{total:.3f}", "acc": "/".join(f"{a:.2f}" for a in accuracy), "best": f"{progress.best:.2f}"}


def _evaluate(trainer: Trainer, *, last: bool = False) -> Evaluation | None:
    """Measure held-out acceptance, keep ``best/`` by it (the ``last`` time without fail), tell the listeners."""
    if trainer.eval_source is None:
        trainer.best_owed = not trainer.saver.best(trainer.draft, now=last)
        return None
    settings, progress, began = trainer.settings, trainer.progress, time.perf_counter()
    trainer.doing = f"evaluation after step {progress.step}"
    rows = range(min(settings.eval_rows, len(trainer.eval_source.lengths)))
    depths = max(SERVED_DEPTHS, settings.ttt_length)
    with trainer.spread.whole():
        found = evaluate(
            trainer.draft,
            trainer.eval_source,
            trainer.draft.embedding(trainer.embedding_VH),
            depths=depths,
            rows=rows,
            batch_size=settings.micro_batch_size or settings.batch_size,
            report=trainer.report,
            ranks=trainer.spread.ranks,
        )
    acceptance = [walk.acceptance_length for walk in found.walks]
    progress.stale = 0 if acceptance[-1] > progress.best else progress.stale + 1
    if progress.stale == 0 or not progress.best:
        trainer.best_owed = not trainer.saver.best(trainer.draft, now=last)
        if not trainer.best_owed:
            progress.best = max(progress.best, acceptance[-1])
    numbers = {
        "step": progress.step,
        "seconds": progress.seconds,
        "acceptance_length": acceptance,
        "accepted_per_position": found.walks[-1].per_position,
        "by_reply_position": {name: counts.acceptance_length for name, counts in found.by_position.items()},
        "accuracy": list(found.accuracy),
        "rows": found.rows,
        "evaluation_seconds": time.perf_counter() - began,
    }
    for listener in trainer.listeners:
        listener("eval", numbers)
    trainer.report.info(
        f"step {progress.step}: acceptance length {acceptance[-1]:.3f} (k={depths}), best {progress.best:.3f}"
    )
    return found
