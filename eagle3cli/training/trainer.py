"""The training loop.

A :class:`Trainer` is what :func:`eagle3cli.training.build.build` put together. It does not know whether states come
from a live target or from disk, nor what a terminal or a tracker is: listeners do. A step is read in this order: this
file, ``batches``, ``ttt/model``, ``ttt/unroll``, ``ttt/attention``, ``ttt/loss``, ``optim/optimizer``, ``parallel``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eagle3cli.backends.batches.batch import BatchSource, RowsByRank
from eagle3cli.backends.target.logits import Head
from eagle3cli.models.draft import Draft
from eagle3cli.models.sampling import Sampling
from eagle3cli.runtime.distributed import Ranks
from eagle3cli.runtime.report import Reporter, Silent
from eagle3cli.runtime.stop import Stop, stopped
from eagle3cli.settings.training import TrainSettings
from eagle3cli.training.batches import Batches
from eagle3cli.training.checkpoint.save import Saver
from eagle3cli.training.checkpoint.state import TrainState
from eagle3cli.training.eval.evaluate import Evaluation, evaluate
from eagle3cli.training.eval.sampled import drawn_elsewhere
from eagle3cli.training.eval.simulate import DecodedReply
from eagle3cli.training.eval.summary import evaluation_numbers
from eagle3cli.training.metrics import Metrics
from eagle3cli.training.on_policy import Meters
from eagle3cli.training.optim.optimizer import Optimizer
from eagle3cli.training.optim.schedule import Schedule
from eagle3cli.training.parallel import Parallel
from eagle3cli.training.skipped import skip_step
from eagle3cli.training.timers import Timers, shares
from eagle3cli.training.ttt.loss import LossWeights, loss_weights, mean_rates
from eagle3cli.training.ttt.model import TTTModel

TRAINING_ROWS = 16
"""Rows that are trained on, measured at each evaluation beside the held-out ones."""
SERVED_STEPS = 5
"""Held-out acceptance is measured for at least this many draft steps, whatever the unroll."""

Listener = Callable[[str, dict[str, Any]], None]
"""Called with an event (``step`` or ``eval``) and its numbers."""


@dataclass
class Trainer:
    """All parts of a run, in the order in which data pass through them."""

    settings: TrainSettings
    output_dir: Path
    batches: Batches
    eval_source: BatchSource | None
    model: TTTModel
    """The draft, its unroll and its loss."""
    parallel: Parallel
    """How the draft lies on the ranks."""
    optimizer: Optimizer
    schedule: Schedule
    saver: Saver
    state: TrainState
    """Where the run stands, beside its weights."""
    report: Reporter
    listeners: Sequence[Listener] = ()
    metrics: Metrics = field(default_factory=Metrics)
    """Since the last log line."""
    timers: Timers = field(default_factory=Timers)
    whole_head: Head | None = None
    """The target's, where ``best/`` goes by acceptance at a temperature."""
    meters: Meters = field(default_factory=dict)
    """Whether the replies are the target's own, by split; the first rank's."""
    data_summary: dict[str, Any] = field(default_factory=dict)
    """Counts of the data, for the report."""
    split: dict[str, Any] = field(default_factory=dict)
    """Which side of a job whose target has ranks of its own waited, for the report; at its end."""

    def __post_init__(self) -> None:
        self.activity = "the first step"
        """What is under way, for people."""
        self._best_unwritten = False
        self._warned = False
        self._logged_seconds = self.state.seconds
        self.grad_norm = torch.zeros(())
        """Of the last step, before clipping."""
        self.learning_rate = 0.0
        """Of the last step."""
        self.decoded: DecodedReply | None = None
        """A held-out reply as the last evaluation decoded it."""

    @property
    def draft(self) -> Draft:
        """The model that is trained."""
        return self.model.draft

    @property
    def ranks(self) -> Ranks:
        """This process among those of the run."""
        return self.parallel.ranks

    def train(self, stop: Stop) -> Evaluation | None:
        """Run to the end of the schedule, the time budget or a stop signal; returns the last evaluation."""
        settings = self.settings
        state = self.state
        evaluation: Evaluation | None = None

        def due(interval: int) -> bool:
            return state.step % interval == 0

        start = self.measure_start() if state.step == 0 else {}
        self._start_clock()
        with self.report.task("train", total=self.schedule.total_steps, unit="steps", done=state.step) as bar:
            signal = self._sync_clock(stop)
            while not signal and not self._finished():
                self.train_step()
                if start:
                    self._tell_start(start)
                    start = {}
                signal = self._sync_clock(stop)
                if due(settings.log_interval):
                    bar.advance(0, **self.log())
                if due(settings.eval_interval):
                    evaluation = self.evaluate()
                if due(settings.save_interval) and not signal:
                    self.save()
                bar.advance(1)
            if signal:
                self.save(now=True)
                saved = f"saved step {state.step} in {self.output_dir}" if state.step else "nothing was trained yet"
                raise stopped(signal, saved)
            if self.metrics.with_loss and not due(settings.log_interval):
                bar.advance(0, **self.log())
        self.batches.close(state.step)
        if evaluation is None or not due(settings.eval_interval) or self._best_unwritten:
            evaluation = self.evaluate(last=True)
        self.save(now=True)
        return evaluation

    def train_step(self) -> None:
        """One optimizer step: micro batches accumulate, ranks add up, the optimizer moves the weights once.

        Losses are sums over positions, divided once by the positions with loss of the whole batch (in ``specforge``
        alignment by the whole batch's B * S), so the result does not depend on how the batch was cut. A step whose
        gradient is not finite changes nothing but the count of such steps.
        """
        settings = self.settings
        state = self.state
        self.activity = f"step {state.step + 1}"
        self.ranks.at(self.activity)
        weights = loss_weights(settings, state.rates)
        step = Metrics()
        with self.parallel.no_sync(self.timers):
            for rows_by_rank in self.batches.micro_batches(state.step):
                self.accumulate(rows_by_rank, weights, step)
        with self.timers.part("waiting"):
            step.all_reduce_counts(self.ranks, settings.ttt_length)
        step.divisor = self._divisor(step)
        self.learning_rate = self.schedule.learning_rate(state.step, state.seconds)
        with self.timers.part("optimiser"), self.ranks.waiting():  # for their sum, which a GPU makes behind the host
            self.grad_norm = self.optimizer.step(
                self.learning_rate, divide_by=step.divisor, all_reduce=self._all_reduce_gradients
            )
        if torch.isfinite(self.grad_norm):
            state.rates = mean_rates(step.sums, step.with_loss_T, self.ranks) if weights.follow_rates else []
            self.metrics.add_step(step)
            self.optimizer.average(state.step + 1 - state.skipped)
        else:
            skip_step(self.output_dir, state, self.batches, float(self.grad_norm), settings, self.report)
        state.step += 1

    def accumulate(self, rows_by_rank: RowsByRank, weights: LossWeights, step: Metrics) -> None:
        """Add this rank's part of a micro batch: its gradients to the weights, and its numbers to the step's."""
        is_live = self.settings.mode == "online" and not self.batches.is_stored(self.state.step)
        with self.timers.part("target" if is_live else "reading"):
            batch = self.batches.states(self.state.step, rows_by_rank)
        if batch is None:
            return
        plan = self.model.plan(batch, self.settings, self.state.step)
        step.tokens += batch.own_tokens
        if plan.empty and plan.shard is None:  # of a sequence on several ranks the others' positions see these keys
            return
        with self.timers.part("forward"):
            loss, sums = self.model(batch, plan, weights)
        step.add_micro_batch(loss.detach(), sums, plan)
        with self.timers.part("backward"):
            loss.backward()
            if loss.device.type == "cuda":  # a CPU's runs stay what they were, to the bit
                self.optimizer.accumulate()

    def _divisor(self, step: Metrics) -> float:
        """What the step's sums are divided by."""
        if self.settings.alignment != "specforge":
            return float(max(1, step.with_loss))
        rows = self.batches.sampler.batch(self.state.step)
        return float(len(rows) * max(self.batches.source.lengths[row] for row in rows))

    def _all_reduce_gradients(self, gradients: Sequence[Tensor]) -> None:
        with self.timers.part("communication"):
            self.parallel.all_reduce(gradients)

    def evaluate(self, *, last: bool = False) -> Evaluation | None:
        """Measure held-out acceptance, keep ``best/`` by it (the ``last`` time without fail), tell the listeners."""
        with self.optimizer.averaged():
            evaluation = self._evaluate_and_keep(now=last)
        self._start_clock()
        return evaluation

    def _evaluate_and_keep(self, *, now: bool) -> Evaluation | None:
        if self.eval_source is None:
            self._best_unwritten = not self.saver.best(self.draft, now=now)
            return None
        state = self.state
        self.activity = f"evaluation after step {state.step}"
        evaluation, numbers = self._measure(self.eval_source)
        self.decoded = evaluation.decoded
        acceptance = evaluation.served_lengths[-1]
        self._keep_best(acceptance, now=now)
        self._tell("eval", numbers)
        at = f", temperature {self.settings.best_by:g}" if evaluation.sampled else ""
        text = f"acceptance length {acceptance:.3f} (k={len(evaluation.simulated)}{at}), best {state.best:.3f}"
        self.report.info(f"step {state.step}: {text}")
        if (warning := drawn_elsewhere(evaluation.sampled)) and not self._warned:
            self._warned = True
            self.report.warn(warning)
        return evaluation

    def _measure(self, source: BatchSource) -> tuple[Evaluation, dict[str, Any]]:
        """The held-out rows of ``source`` as the draft is now, and what listeners are told of them.

        Some rows that are trained on are measured beside them: a gap that grows is learning by heart.
        """
        began = time.perf_counter()
        self.ranks.at(self.activity)
        with self.parallel.unsharded():
            evaluation = self._evaluate(source, self.settings.eval_rows, self.report, served_sampling(self.settings))
            trained_on = self._evaluate(
                self.batches.whole_source or self.batches.source, min(self.settings.eval_rows, TRAINING_ROWS), Silent()
            )
        numbers = {
            "step": self.state.step,
            "seconds": self.state.seconds,
            **evaluation_numbers(evaluation),
            "evaluation_seconds": time.perf_counter() - began,
            "training_acceptance_length": trained_on.acceptance_lengths,
        }
        return evaluation, numbers

    def _evaluate(
        self, source: BatchSource, rows: int, report: Reporter, samplings: Sequence[Sampling] = ()
    ) -> Evaluation:
        """The first ``rows`` rows of ``source``."""
        return evaluate(
            self.draft,
            source,
            self.draft.embedding(self.model.target.embedding_VH),
            draft_steps=max(SERVED_STEPS, self.settings.ttt_length),
            rows=range(min(rows, len(source.lengths))),
            batch_size=self._eval_batch_size(source.lengths),
            report=report,
            ranks=self.ranks,
            attend=self.model.attend,
            samplings=samplings,
            head=self.whole_head,
        )

    def measure_start(self) -> dict[str, Any]:
        """What an evaluation says of the draft before its first step; empty without held-out rows.

        It is where curves begin: no draft is kept for it, and its time is not the training's.
        """
        if self.eval_source is None:
            return {}
        self.activity = "evaluation before the first step"
        try:
            return self._measure(self.eval_source)[1]
        except Exception as error:
            if self.ranks.world_size > 1:  # the others would wait for this one
                raise
            self.report.warn(f"the untrained draft was not measured, curves begin later: {error}")
            return {}

    def _tell_start(self, start: dict[str, Any]) -> None:
        """Tell the start with the loss of the first step's rows, which the untrained draft was given."""
        metrics = self.metrics
        if metrics.with_loss:
            total, loss_T, correct_T, _ = metrics.totals(self.ranks, self.settings.ttt_length)
            counted = zip(correct_T, metrics.counted_T, strict=True)
            depth_losses = [value / metrics.divisor for value in loss_T]
            start |= {"loss": total / metrics.divisor, "depth_losses": depth_losses}
            start |= {"training_accuracy": [c / max(1, n) for c, n in counted]}
        self._tell("start", start)

    def _eval_batch_size(self, lengths: Sequence[int]) -> int:
        """Held-out rows that run at once: a micro batch, of the longest ones where tokens are counted."""
        settings = self.settings
        if settings.max_tokens_per_gpu is not None:
            return max(1, settings.max_tokens_per_gpu // max(lengths))
        return settings.micro_batch_size or settings.batch_size

    def _keep_best(self, acceptance: float, *, now: bool) -> None:
        """Write ``best/`` where this draft is the best so far; it counts as such once it is written."""
        state = self.state
        state.evals_without_improvement = 0 if acceptance > state.best else state.evals_without_improvement + 1
        if state.evals_without_improvement == 0 or not state.best:
            self._best_unwritten = not self.saver.best(self.draft, now=now)
            if not self._best_unwritten:
                state.best = max(state.best, acceptance)

    def save(self, *, now: bool = False) -> None:
        """Write a checkpoint of the run as it is: in the background, or ``now``."""
        state = self.state
        self.ranks.at(f"checkpoint of step {state.step}")
        epoch = self.batches.sampler.epoch_of(max(0, state.step - 1))
        state.metrics = self.metrics.saved(self.ranks, self.settings.ttt_length)
        write = self.saver.now if now else self.saver.begin
        write(epoch, self.draft, self.optimizer, state)

    def log(self) -> dict[str, Any]:
        """Read the metrics back once, tell the listeners, and return what the progress bar shows."""
        metrics = self.metrics
        state = self.state
        seconds = state.seconds - self._logged_seconds
        spent = self.timers.read()
        self.metrics = Metrics()
        self._logged_seconds = state.seconds
        if not metrics.with_loss:
            return {"loss": "no rows with loss"}
        total, loss_T, correct_T, (*parts, cpu_seconds) = metrics.totals(self.ranks, self.settings.ttt_length, spent)
        loss = total / metrics.divisor
        accuracy_T = [c / max(1, n) for c, n in zip(correct_T, metrics.counted_T, strict=True)]
        numbers = {
            "step": state.step,
            "epoch": self.batches.sampler.epoch_of(state.step - 1),
            "loss": loss,
            "depth_losses": [value / metrics.divisor for value in loss_T],
            "accuracy": accuracy_T,
            "grad_norm": float(self.grad_norm),
            "learning_rate": self.learning_rate,
            "tokens": metrics.tokens,
            "tokens_per_s": metrics.tokens / max(1e-9, seconds),
            "time": shares([part / self.ranks.world_size for part in parts], seconds),
            "processor_seconds": cpu_seconds,
            "peak_memory": self.timers.peak_memory(),
            "steps_left_out": state.skipped,
            "seconds": state.seconds,
        }
        self._tell("step", numbers)
        best = {"best": f"{state.best:.2f}"} if state.best else {}
        return {"loss": f"{loss:.3f}", "acc": "/".join(f"{a:.2f}" for a in accuracy_T), **best}

    def _tell(self, event: str, numbers: dict[str, Any]) -> None:
        for listener in self.listeners:
            listener(event, numbers)

    def _start_clock(self) -> None:
        """From here on time counts as training; what has passed since the last step did not."""
        self._began = time.perf_counter() - self.state.seconds

    def _sync_clock(self, stop: Stop) -> int | None:
        """The stop signal that any rank has got; the run's time becomes the longest of theirs.

        All ranks act on what is returned here, never on what has reached one of them since.
        """
        seconds = time.perf_counter() - self._began
        with self.timers.part("waiting"):
            self.state.seconds, signal = self.ranks.all_reduce_max([seconds, stop.requested or 0])
        return int(signal) or None

    def _finished(self) -> bool:
        patience = self.settings.early_stop
        stale = self.state.evals_without_improvement
        if patience is not None and stale >= patience:
            self.report.info(f"stopped early: no better acceptance length in {stale} evaluations")
            return True
        return self.schedule.is_over(self.state.step, self.state.seconds)


def served_sampling(settings: TrainSettings) -> tuple[Sampling, ...]:
    """How replies are drawn where the draft will serve; nothing for greedy ones."""
    return (Sampling(settings.best_by, settings.top_p, settings.top_k),) if settings.best_by else ()
