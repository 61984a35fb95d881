"""One optimiser step: micro batches accumulate, ranks add up, the optimiser moves the weights once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eagle3cli.training.metrics import Window
from eagle3cli.training.sharding import share_of
from eagle3cli.training.skipped import skip_step
from eagle3cli.training.ttt.loss import Teacher
from eagle3cli.training.ttt.objective import Objective
from eagle3cli.training.ttt.positions import draw_anchors, plan_rows

if TYPE_CHECKING:
    from eagle3cli.training.trainer import Trainer


def optimise(trainer: Trainer, rows: list[int], rate: float) -> Tensor:
    """One optimiser step over ``rows``, each rank's share a micro batch at a time; the gradient norm before clipping.

    Losses are sums over rows, divided once by the kept rows of the whole batch (in ``specforge`` alignment by the
    whole batch's B * S), so the result does not depend on how the batch was cut. A step whose gradient is not finite
    changes nothing but the count of such steps.
    """
    settings, window, progress = trainer.settings, Window(), trainer.progress
    ranks = trainer.spread.ranks
    lengths = trainer.source.lengths
    objective = Objective.of(settings, progress.rates)
    clock = trainer.clock
    with trainer.spread.of_step(clock):
        for part in share_of(rows, lengths, ranks, settings.micro_batch_size):
            accumulate(trainer, part, objective, window)
    with clock.part("waiting"):
        window.add_up(ranks, settings.ttt_length)
    window.divided_by = float(max(1, window.kept))
    if settings.alignment == "specforge":
        window.divided_by = float(len(rows) * max(lengths[row] for row in rows))

    def add_up(gradients: Sequence[Tensor]) -> None:
        with clock.part("communication"):
            trainer.spread.add_up(gradients)

    with clock.part("optimiser"):
        norm = trainer.optimizer.step(rate, divide_by=window.divided_by, add_up=add_up)
    if torch.isfinite(norm):
        progress.rates = objective.next_rates(window.sums, window.kept_T, ranks)
        trainer.window.add(window)
    else:
        skip_step(trainer.output_dir, progress, trainer.source, rows, float(norm), settings, trainer.report, ranks)
    return norm


def accumulate(trainer: Trainer, rows: list[int], objective: Objective, window: Window) -> None:
    """Add one micro batch's gradients to the weights, and its numbers to the window; of none, let the others go on."""
    settings, draft, clock = trainer.settings, trainer.draft, trainer.clock
    with clock.part("target" if settings.mode == "online" else "reading"):
        if not rows:
            trainer.source.take_part()
            return
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
    teacher = Teacher(batch.last_NH, batch.top_N, trainer.teacher_head, draft.draft_ids, whole_head=trainer.whole_head)
    with clock.part("forward"):
        total, sums = trainer.forward(batch, plan, teacher, trainer.embedding_VH, objective.weights)
    with clock.part("backward"):
        total.backward()
    window.count(total.detach(), sums, plan)
