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
from eagle3cli.backends.logits import Head
from eagle3cli.models.draft import Draft
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.stop import Stop
from eagle3cli.settings.tables import Train
from eagle3cli.training.checkpoints import Progress, save_best, save_checkpoint
from eagle3cli.training.evaluate import Evaluation, evaluate
from eagle3cli.training.loss import Teacher, depth_losses
from eagle3cli.training.objective import Objective
from eagle3cli.training.optimizer import Optimizer
from eagle3cli.training.order import Order
from eagle3cli.training.rows import draw_anchors, plan_rows
from eagle3cli.training.schedule import learning_rate
from eagle3cli.training.skipped import leave_out
from eagle3cli.training.unroll import Attend, unroll
from eagle3cli.training.window import Window

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
    teacher_head: Head
    """The target's head, restricted to the draft vocabulary."""
    whole_head: Head | None
    """The target's whole head; only losses with acceptance rates read it."""
    attend: Attend
    optimizer: Optimizer
    progress: Progress
    report: Reporter
    listeners: Sequence[Listener] = ()
    window: Window = field(default_factory=Window)


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
        if progress.step % settings.log_interval and trainer.window.loss:
            task.advance(0, **_log(trainer, _learning_rate(trainer), norm))
    if progress.step % settings.eval_interval or result is None:
        result = _evaluate(trainer)
    if progress.step % settings.save_interval:
        save(trainer)
    return result


def optimise(trainer: Trainer, rows: list[int], rate: float) -> Tensor:
    """One optimiser step over ``rows``, a micro batch at a time; returns the gradient norm before clipping.

    Losses are sums over rows, divided once by the kept rows of the whole batch (in ``specforge`` alignment by the
    whole batch's B * S), so the result does not depend on how the batch was cut. A step whose gradient is not finite
    changes nothing but the count of such steps.
    """
    settings, window, progress = trainer.settings, Window(), trainer.progress
    micro = settings.micro_batch_size or len(rows)
    objective = Objective.of(settings, progress.rates)
    for at in range(0, len(rows), micro):
        accumulate(trainer, rows[at : at + micro], objective, window)
    window.divided_by = float(max(1, window.kept))
    if settings.alignment == "specforge":
        window.divided_by = float(len(rows) * max(trainer.source.lengths[row] for row in rows))
    norm = trainer.optimizer.step(rate, divide_by=window.divided_by)
    if torch.isfinite(norm):
        progress.rates = objective.next_rates(window.sums, window.kept_T)
        trainer.window.add(window)
    else:
        leave_out(trainer.output_dir, progress, trainer.source, rows, float(norm), settings, trainer.report)
    return norm


def accumulate(trainer: Trainer, rows: list[int], objective: Objective, window: Window) -> None:
    """Add one micro batch's gradients to the weights, and its numbers to the window."""
    settings, draft = trainer.settings, trainer.draft
    batch = trainer.source.batch(rows)
    plan = plan_rows(
        batch.loss_mask_N,
        batch.bounds,
        draft.t2d[batch.top_N],
        settings.ttt_length,
        settings.alignment,
        draw_anchors(
            batch.rows, batch.bounds, settings.anchor_fraction, seed=settings.seed, step=trainer.progress.step
        ),
    )
    window.tokens += len(batch.token_ids_N)
    if plan.empty:
        return
    normed = unroll(
        draft,
        batch.token_ids_N,
        batch.aux_NC.to(draft.fc.weight.dtype),
        trainer.embedding_VH,
        plan,
        attend=trainer.attend,
        recompute=settings.activation_checkpointing,
    )
    teacher = Teacher(batch.last_NH, batch.top_N, trainer.teacher_head, draft.draft_ids, whole_head=trainer.whole_head)
    total, sums = depth_losses(normed, draft.lm_head.weight, teacher, plan, objective.weights)
    total.backward()
    window.count(total.detach(), sums, plan)


def save(trainer: Trainer) -> None:
    """Write a checkpoint of the run as it is now."""
    epoch = trainer.order.epoch_of(max(0, trainer.progress.step - 1))
    keep = trainer.settings.keep_checkpoints
    save_checkpoint(trainer.output_dir, epoch, trainer.draft, trainer.optimizer, trainer.progress, keep=keep)


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
    window, progress = trainer.window, trainer.progress
    trainer.window = Window()
    if not window.loss:
        return {"loss": "no rows with loss"}
    total = float(torch.stack(window.loss).sum()) / window.divided_by
    loss_T = (torch.stack([sums.loss_T for sums in window.sums]).sum(0) / window.divided_by).tolist()
    correct_T = torch.stack([sums.correct_T for sums in window.sums]).sum(0).tolist()
    accuracy = [c / max(1, n) for c, n in zip(correct_T, window.counted, strict=True)]
    rate_per_s = window.tokens / max(1e-9, time.perf_counter() - window.began)
    numbers = {
        "step": progress.step,
        "epoch": trainer.order.epoch_of(progress.step - 1),
        "loss": total,
        "depth_losses": loss_T,
        "accuracy": accuracy,
        "grad_norm": float(norm),
        "learning_rate": rate,
        "tokens_per_s": rate_per_s,
        "steps_left_out": progress.skipped,
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
    progress.stale = 0 if acceptance[-1] > progress.best else progress.stale + 1
    if progress.stale == 0 or not (trainer.output_dir / "best").exists():
        progress.best = max(progress.best, acceptance[-1])
        save_best(trainer.output_dir, trainer.draft)
    numbers = {
        "step": progress.step,
        "seconds": progress.seconds,
        "acceptance_length": acceptance,
        "accepted_per_position": found.walks[-1].per_position,
        "by_reply_position": {name: counts.acceptance_length for name, counts in found.by_position.items()},
        "accuracy": list(found.accuracy),
        "rows": found.rows,
    }
    for listener in trainer.listeners:
        listener("eval", numbers)
    trainer.report.info(
        f"step {progress.step}: acceptance length {acceptance[-1]:.3f} (k={depths}), best {progress.best:.3f}"
    )
    return found
