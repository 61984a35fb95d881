"""Times what a run will do on this machine, for at most a minute: the target's load, its passes, and the draft's steps.

The real target is loaded and the trainer's own step is run; tokens and states are random, which takes the same time.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from eagle3cli.backends.batches.batch import TargetBatch
from eagle3cli.backends.capture.capture import with_compute_dtype
from eagle3cli.backends.capture.passes import CPU_TOKENS, run_batch
from eagle3cli.backends.target.gguf.folder import local_folder
from eagle3cli.backends.target.hf import HfTarget, load_target
from eagle3cli.data.hidden_states.calibration import fit_codec
from eagle3cli.data.tokens.rows import TokenRow
from eagle3cli.data.tokens.vocab import from_ids
from eagle3cli.errors import Eagle3Error, UsageError
from eagle3cli.models.draft import Draft
from eagle3cli.pipeline.forecast.calibration import Calibration, DecodingStep, TrainingStep, now
from eagle3cli.pipeline.forecast.machine import MEAN_CONTEXT, Machine
from eagle3cli.pipeline.forecast.models import Shapes
from eagle3cli.pipeline.forecast.ranges import Range
from eagle3cli.pipeline.forecast.timing import Clock, Timing, at_most, repeat, time_once
from eagle3cli.runtime.devices import compute_type, set_threads
from eagle3cli.runtime.distributed import SINGLE_PROCESS
from eagle3cli.runtime.out_of_memory import is_out_of_memory, release
from eagle3cli.runtime.report import Reporter, Silent
from eagle3cli.runtime.units import size_text
from eagle3cli.serving.bench.configs import parse_config
from eagle3cli.serving.decode.batches import serves_positions
from eagle3cli.serving.decode.decode import decode
from eagle3cli.settings.models import TargetSettings
from eagle3cli.settings.tables import Settings
from eagle3cli.training.batches import Batches, Sampler
from eagle3cli.training.build import make_draft, make_model, make_optimizer
from eagle3cli.training.checkpoint.save import Saver
from eagle3cli.training.checkpoint.state import TrainState
from eagle3cli.training.inputs import Inputs
from eagle3cli.training.optim.schedule import Schedule
from eagle3cli.training.parallel import parallelize
from eagle3cli.training.timers import Timers
from eagle3cli.training.trainer import Trainer

LIMIT = 60.0
"""Seconds of all parts together."""
PASS_SECONDS = 2.0
"""A pass is made as large as the run's, but not so large that it takes longer than about this."""


class Enough(Exception):
    """Ends a decoding of which nobody reads the result."""


@dataclass
class RandomRows:
    """A BatchSource of rows of equal length with random states."""

    tokens: int
    loss: int
    """Tokens at a row's end that carry loss."""
    rows: int
    target: HfTarget
    config: Any

    def __post_init__(self) -> None:
        device = self.target.device
        dtype = self.target.dtype
        self.lengths = [self.tokens] * self.rows
        self.aux_SC = torch.randn(self.tokens, self.config.aux_width, device=device).to(dtype)
        self.last_SH = torch.randn(self.tokens, self.target.hidden_size, device=device).to(dtype)
        self.ids_S = torch.randint(self.config.draft_vocab_size, (self.tokens,))
        self.mask_S = torch.arange(self.tokens) >= self.tokens - self.loss

    def batch(self, rows: Sequence[int]) -> TargetBatch:
        """The same row so many times."""
        count = len(rows)
        ids_N = self.ids_S.repeat(count)
        return TargetBatch(
            token_ids_N=ids_N.to(self.target.device),
            loss_mask_N=self.mask_S.repeat(count),
            cu_seqlens=tuple(accumulate([self.tokens] * count, initial=0)),
            aux_NC=self.aux_SC.repeat(count, 1),
            last_NH=self.last_SH.repeat(count, 1),
            top_N=ids_N.to(self.target.device),
            rows=tuple(rows),
            top_host_N=ids_N,
        )


@dataclass
class Parts:
    """The parts in their order, and what was timed of them."""

    machine: Machine
    shapes: Shapes
    row: int
    """Tokens of a typical row."""
    loss: int
    """Those of them that carry loss."""
    folder: Path
    """Where a .gguf file is converted to, and gone after it."""
    report: Reporter
    calibration: Calibration = field(default_factory=lambda: Calibration(now()))

    def __post_init__(self) -> None:
        self.settings: Settings = self.machine.settings
        self.loaded: HfTarget | None = None
        self.token_seconds = 0.0

    @property
    def target(self) -> HfTarget:
        """The target, which the first part loads."""
        assert self.loaded is not None
        return self.loaded

    def load(self) -> None:
        """Load the target, converted first where it is a .gguf file, and see roughly how fast it is."""
        set_threads(self.settings.target.threads)
        path = local_folder(self.settings.target.model_path, self.folder, self.report)
        self.settings = self.settings.updated("target", model_path=path)
        seconds = self._take(time_once(lambda: self._load(self.settings.target)))
        self.calibration = replace(self.calibration, load=seconds)
        rows = self._rows(1)
        timing = repeat(lambda: run_batch(self.target, rows), self.target.device)
        self.token_seconds = min(timing.seconds) / self.row

    def _load(self, target: TargetSettings) -> None:
        self.loaded = None  # two would not fit side by side
        self.loaded = load_target(target, Silent(), self.shapes.draft.aux_layers)

    def train(self) -> None:
        """The trainer's own step on this process's share of a batch."""
        train = self.settings.train.model_copy(update={"mode": "offline", "output_dir": self.folder})
        rows = max(1, train.batch_size // self.machine.gpus)
        config = self.shapes.draft
        source = RandomRows(self.row, self.loss, rows, self.target, config)
        vocab = from_ids(range(config.draft_vocab_size), config.vocab_size)
        weights = {"embedding": self.target.embedding_VH}
        inputs = Inputs(source, None, vocab, config, self.target.head, weights, "", {})
        draft = make_draft(self.settings.updated("draft", init="target"), inputs)
        if train.head_lr_scale == 0:
            draft.lm_head.requires_grad_(False)
        dtype = compute_type(train.dtype, self.target.device)
        model = make_model(train, draft, inputs, dtype, Silent())
        parallel = parallelize(model, SINGLE_PROCESS, train, dtype)
        trainer = Trainer(
            settings=train,
            output_dir=self.folder,
            batches=Batches(
                source, Sampler(rows, rows, 0), train.micro_batch_size, max_tokens=train.max_tokens_per_gpu
            ),
            eval_source=None,
            model=model,
            parallel=parallel,
            optimizer=make_optimizer(train, draft),
            schedule=Schedule(train, 1000),
            saver=Saver(self.folder, 1, SINGLE_PROCESS, Silent()),
            state=TrainState(),
            report=Silent(),
            timers=Timers(self.target.device),
        )
        seconds = self._take(repeat(trainer.train_step, self.target.device))
        self.calibration = replace(self.calibration, training=TrainingStep(rows, self.row, self.loss, seconds))

    def decode(self) -> None:
        """Steps of the local engine: one sequence and a batch, without a draft and with the run's deepest chain."""
        if self.machine.engine != "local" or not serves_positions(self.target.model):
            return
        depths = [parse_config(text).steps for text in self.settings.bench.config_list]
        deepest = max(self.settings.run.k, *depths, 0)
        largest = max(self.settings.regenerate.batch_size, self.settings.run.batch_size)
        batch = round(min(largest, max(2.0, PASS_SECONDS / self.token_seconds / (deepest + 1))))
        draft = Draft(self.shapes.draft)
        vocab = from_ids(range(draft.config.draft_vocab_size), draft.config.vocab_size)
        draft.set_vocab(vocab.d2t, vocab.t2d)
        draft = draft.to(self.target.device).cast(self.target.dtype).eval().requires_grad_(False)
        for depth in (0, deepest):
            sizes = sorted({1, batch})
            steps = [DecodingStep(size, depth, self._decoding_step(draft, size, depth)) for size in sizes]
            # Both or none: where time ends between them there is no line through them.
            self.calibration = replace(self.calibration, decoding=(*self.calibration.decoding, *steps))

    def _decoding_step(self, draft: Draft, batch: int, depth: int) -> Range:
        context = min(MEAN_CONTEXT * self.row, PASS_SECONDS / self.token_seconds / batch)
        prompts = [self._token_ids(max(4, round(context)), seed) for seed in range(batch)]
        clock = Clock(self.target.device)

        def check(_: float) -> None:  # called before the prompts are read, which warms up, and before every step
            clock.tick()
            if clock.is_enough:
                raise Enough

        with suppress(Enough):
            decode(
                self.target,
                draft,
                prompts,
                k=depth,
                max_new_tokens=64,
                eos_ids=frozenset(),
                batch_size=batch,
                check=check,
            )
        return self._take(clock.timing())

    def capture(self) -> None:
        """Passes of the target as hidden-states makes them, or as online training does."""
        options = self.settings.hidden_states
        is_offline = self.settings.train.mode == "offline"
        target = self.settings.target
        computing = with_compute_dtype(target, options.dtype) if is_offline else target
        if computing != target:
            self._load(computing)
        most = CPU_TOKENS if self.machine.device == "cpu" else options.batch_tokens
        rows = self._rows(max(1, round(min(most, PASS_SECONDS / self.token_seconds) / self.row)))
        encoding = "int8" if options.encoding == "auto" else options.encoding
        codec = fit_codec(encoding, run_batch(self.target, rows)).to(self.target.device) if is_offline else None

        def work() -> None:
            states = run_batch(self.target, rows)
            if codec is not None:
                codec.pack(states)

        seconds = self._take(repeat(work, self.target.device))
        tokens = float(sum(map(len, rows)))
        self.calibration = replace(self.calibration, capture_rate=Range(tokens, tokens) / seconds)

    def _take(self, timing: Timing) -> Range:
        self.calibration = replace(self.calibration, waited=max(self.calibration.waited, timing.waited))
        return timing.range()

    def _rows(self, count: int) -> list[TokenRow]:
        mask = np.arange(self.row) >= self.row - self.loss
        return [
            TokenRow(str(seed), np.array(self._token_ids(self.row, seed), dtype=np.int32), mask.astype(np.uint8))
            for seed in range(count)
        ]

    def _token_ids(self, count: int, seed: int) -> list[int]:
        return random.Random(seed).choices(range(self.shapes.target.vocab), k=count)


def calibrate(machine: Machine, shapes: Shapes, row: Range, loss: Range, report: Reporter) -> Calibration:
    """Time all parts that this machine and these settings have, until a minute is over.

    ``row`` and ``loss`` are the mean tokens of a row, and those of them that carry loss. Raises UsageError where the
    run is planned for another machine or the target is not here, ModelError for a target that cannot be loaded, and
    Eagle3Error where time did not suffice for any part.
    """
    _check(machine, shapes)
    tokens = max(8, round((row.low + row.high) / 2))
    with_loss = max(4, min(tokens - 2, round((loss.low + loss.high) / 2)))
    with TemporaryDirectory(prefix="eagle3-") as folder, report.task("calibration", total=4, unit="parts") as bar:
        parts = Parts(machine, shapes, tokens, with_loss, Path(folder), report)
        with at_most(LIMIT):
            for part in (parts.load, parts.train, parts.decode, parts.capture):
                _run(part, report)
                bar.advance(1)
    if parts.calibration.load is None:
        what = f"the target was not loaded within {LIMIT:.0f} s"
        raise Eagle3Error(
            "cannot-calibrate", what, where="--calibrate", fix="plan without it: the ranges stay as they are"
        )
    return parts.calibration


def _run(part: Callable[[], None], report: Reporter) -> None:
    """Run a part; one that memory does not suffice for is left out, and told."""
    try:
        part()
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        report.warn(f"memory did not suffice to time {part.__name__} here")
        release(error)


def _check(machine: Machine, shapes: Shapes) -> None:
    if machine.is_assumed:
        fix = "calibrate on the machine that will run it, or plan for this one: --set target.device=cpu"
        raise UsageError(
            "cannot-calibrate", "the run is planned for a GPU, and none is here", where="--calibrate", fix=fix
        )
    if not shapes.is_read:
        raise UsageError(
            "cannot-calibrate", "the target is not here", where="--calibrate", fix="fetch it first: hf download TARGET"
        )
    needed = shapes.target.weights * (4 if machine.device == "cpu" else 2)
    if machine.memory is not None and needed > machine.memory:
        raise UsageError(
            "out-of-memory",
            f"the target takes {size_text(needed)} of one device, {size_text(machine.memory)} are there",
            where="--calibrate",
            fix="plan without it: the ranges stay as they are",
        )
