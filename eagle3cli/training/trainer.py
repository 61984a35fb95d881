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

from eagle3cli.backends.batch import BatchSource
from eagle3cli.errors import Eagle3Error
from eagle3cli.models.draft import Draft
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.stop import Stop
from eagle3cli.settings.tables import Train
from eagle3cli.training.checkpoints import Progress, save_best, save_checkpoint
from eagle3cli.training.evaluate import Evaluation, evaluate
from eagle3cli.training.loss import Teacher, depth_losses
from eagle3cli.training.optimizer import Optimizer
from eagle3cli.training.order import Order
from eagle3cli.training.rows import plan_rows
from eagle3cli.training.schedule import learning_rate
from eagle3cli.training.unroll import unroll

MAX_SKIPPED = 10
SERVED_DEPTHS = 5
"""Held-out acceptance is measured for at least this many draft steps, whatever the unroll."""

BUDGET_TICKS = 1_000_000
"""Steps that a whole time budget counts as in the schedule."""

Listener = Callable[[str, dict[str, Any]], None]
"""Called with an event (``step`` or ``eval``) and its numbers."""


@dataclass
class Trainer:
    """All parts of a run, in the order in which data pass through them."""

    settings: Train
    output_dir: Path
    source: BatchSource
    eval_source: BatchSource | None
    order: Order
    total_steps: int | None
    """None under a time budget."""
    budget_seconds: float | None
    draft: Draft
    embedding_VH: Tensor
    teacher_head_VdH: Tensor
    optimizer: Optimizer
    progress: Progress
    report: Reporter
    listeners: Sequence[Listener] = ()
    window: Window = field(default_factory=lambda: Window())


@dataclass
class Window:
    """Sums since the last log line; tensors stay on the device until they are read."""

    loss: list[Tensor] = field(default_factory=list)
    correct: list[Tensor] = field(default_factory=list)
    kept: int = 0
    counted: list[int] = field(default_factory=list)
    tokens: int = 0
    began: float = field(default_factory=time.perf_counter)


def train(trainer: Trainer, stop: Stop) -> Evaluation | None:
    """Run to the end of the schedule, the time budget or a stop signal; returns the last evaluation."""
    settings, progress = trainer.settings, trainer.progress
    began = time.perf_counter() - progress.seconds
    result, norm = None, torch.zeros(())
    with trainer.report.task("train", total=trainer.total_steps, unit="steps", done=progress.step) as task:
        while not _finished(trainer):
            rate = _learning_rate(trainer)
            norm = optimise(trainer, trainer.order.batch(progress.step), rate)
            progress.step += 1
            progress.seconds = time.perf_counter() - began
            if progress.step % settings.log_interval == 0:
                task.advance(0, **_log(trainer, rate, norm))
            if progress.step % settings.eval_interval == 0:
                result = _evaluate(trainer)
                began = time.perf_counter() - progress.seconds
            if progress.step % settings.save_interval == 0 or stop.requested:
                save(trainer)
            task.advance(1)
            stop.check(f"saved step {progress.step} in {trainer.output_dir}")
        if progress.step % settings.log_interval and trainer.window.kept:
            task.advance(0, **_log(trainer, _learning_rate(trainer), norm))
    if progress.step % settings.eval_interval or result is None:
        result = _evaluate(trainer)
    if progress.step % settings.save_interval:
        save(trainer)
    return result


def optimise(trainer: Trainer, rows: list[int], rate: float) -> Tensor:
    """One optimiser step over ``rows``, a micro batch at a time; returns the gradient norm before clipping.

    Losses are sums over rows, divided once by the kept rows of the whole batch, so the result does not depend on how
    the batch was cut.
    """
    micro = trainer.settings.micro_batch_size or len(rows)
    kept = sum(accumulate(trainer, rows[at : at + micro]) for at in range(0, len(rows), micro))
    norm = trainer.optimizer.step(rate, divide_by=max(1, kept))
    if not torch.isfinite(norm):
        trainer.progress.skipped += 1
        trainer.report.warn(f"step {trainer.progress.step + 1}: gradient norm {float(norm)}; step left out")
        if trainer.progress.skipped >= MAX_SKIPPED:
            raise Eagle3Error(
                f"{trainer.progress.skipped} steps had no finite gradient",
                where=f"step {trainer.progress.step + 1}, rows {rows}",
                fix="lower train.learning_rate, or look at these rows with eagle3 view",
            )
    return norm


def accumulate(trainer: Trainer, rows: list[int]) -> int:
    """Add one micro batch's gradients; returns its kept rows."""
    settings, draft = trainer.settings, trainer.draft
    batch = trainer.source.batch(rows)
    plan = plan_rows(batch.loss_mask_N, batch.bounds, draft.t2d[batch.top_N], settings.ttt_length, settings.alignment)
    if not plan.kept:
        return 0
    normed = unroll(draft, batch.token_ids_N, batch.aux_NC.to(draft.fc.weight.dtype), trainer.embedding_VH, plan)
    teacher = Teacher(batch.last_NH, batch.top_N, trainer.teacher_head_VdH, draft.draft_ids)
    weights = [settings.loss_decay**depth for depth in range(settings.ttt_length)]
    total, sums = depth_losses(normed, draft.lm_head.weight, teacher, plan, weights)
    total.backward()
    window = trainer.window
    window.loss.append(sums.loss_T)
    window.correct.append(sums.correct_T)
    window.kept += plan.kept
    window.tokens += len(batch.token_ids_N)
    counted = [depth.counted for depth in plan.depths]
    window.counted = [a + b for a, b in zip(window.counted or [0] * len(counted), counted, strict=True)]
    return plan.kept


def save(trainer: Trainer) -> None:
    """Write a checkpoint of the run as it is now."""
    epoch = trainer.order.epoch_of(max(0, trainer.progress.step - 1))
    keep = trainer.settings.keep_checkpoints
    save_checkpoint(trainer.output_dir, epoch, trainer.draft, trainer.optimizer, trainer.progress, keep=keep)


def _finished(trainer: Trainer) -> bool:
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
    window, progress = trainer.window, trainer.progress
    trainer.window = Window()
    if not window.kept:
        return {"loss": "no rows with loss"}
    loss_T = (torch.stack(window.loss).sum(0) / window.kept).tolist()
    correct_T = torch.stack(window.correct).sum(0).tolist()
    accuracy = [c / max(1, n) for c, n in zip(correct_T, window.counted, strict=True)]
    rate_per_s = window.tokens / max(1e-9, time.perf_counter() - window.began)
    total = sum(loss * trainer.settings.loss_decay**depth for depth, loss in enumerate(loss_T))
    numbers = {
        "step": progress.step,
        "epoch": trainer.order.epoch_of(progress.step - 1),
        "loss": total,
        "depth_losses": loss_T,
        "accuracy": accuracy,
        "grad_norm": float(norm),
        "learning_rate": rate,
        "tokens_per_s": rate_per_s,
        "seconds": progress.seconds,
    }
    for listener in trainer.listeners:
        listener("step", numbers)
    return {"loss": f"{total:.3f}", "acc": "/".join(f"{a:.2f}" for a in accuracy), "best": f"{progress.best:.2f}"}


def _evaluate(trainer: Trainer) -> Evaluation | None:
    """Measure held-out acceptance, keep ``best/`` by it, tell the listeners."""
    if trainer.eval_source is None:
        save_best(trainer.output_dir, trainer.draft)
        return None
    settings, progress = trainer.settings, trainer.progress
    rows = range(min(settings.eval_rows, len(trainer.eval_source.lengths)))
    depths = max(SERVED_DEPTHS, settings.ttt_length)
    found = evaluate(
        trainer.draft,
        trainer.eval_source,
        trainer.embedding_VH,
        depths=depths,
        rows=rows,
        batch_size=settings.micro_batch_size or settings.batch_size,
        report=trainer.report,
    )
    acceptance = [walk.acceptance_length for walk in found.walks]
    if acceptance[-1] > progress.best or not (trainer.output_dir / "best").exists():
        progress.best = max(progress.best, acceptance[-1])
        save_best(trainer.output_dir, trainer.draft)
    numbers = {"step": progress.step, "seconds": progress.seconds, "acceptance_length": acceptance}
    for listener in trainer.listeners:
        listener("eval", {**numbers, "accuracy": list(found.accuracy), "rows": found.rows})
    trainer.report.info(
        f"step {progress.step}: acceptance length {acceptance[-1]:.3f} (k={depths}), best {progress.best:.3f}"
    )
    return found
