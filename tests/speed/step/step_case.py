"""A training step of any shape, with no data and no target on disk: what the roofline and the benchmark on a GPU run.

The trainer is the product's own; its states, weights and heads are made here, random ones or ones without numbers.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eagle3cli.backends.batches.batch import TargetBatch
from eagle3cli.backends.capture.memory import TargetShape
from eagle3cli.backends.target.logits import Head
from eagle3cli.models.config import DraftConfig
from eagle3cli.models.draft import Draft
from eagle3cli.models.packaged import packaged_configs
from eagle3cli.runtime.distributed import SINGLE_PROCESS
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.training import TrainSettings
from eagle3cli.training.batches import Batches, Sampler
from eagle3cli.training.build import choose_attention
from eagle3cli.training.checkpoint.save import Saver
from eagle3cli.training.checkpoint.state import TrainState
from eagle3cli.training.forecast.sizes import Workload
from eagle3cli.training.optim.optimizer import Optimizer
from eagle3cli.training.optim.schedule import Schedule
from eagle3cli.training.parallel import Parallel
from eagle3cli.training.timers import Timers
from eagle3cli.training.trainer import Trainer
from eagle3cli.training.ttt.model import TargetWeights, TTTModel

MakeTensor = Callable[..., Tensor]
"""From sizes to a floating-point tensor in the draft's type on its device."""


def packaged(name: str) -> DraftConfig:
    """A packaged draft config."""
    return DraftConfig.from_dict(json.loads(packaged_configs()[name].read_text()))


@dataclass(frozen=True)
class Case:
    """A draft, a batch and how it is trained; the settings are the defaults but for what is named here."""

    draft: DraftConfig
    lengths: tuple[int, ...]
    mask: float = 0.5
    """Share of each sequence that carries loss: its end."""
    loss: str = "kl"
    ttt: int = 7
    recompute: bool = False
    chunk: int | None = None
    """``--loss-chunk``; None is its default."""
    micro_batch: int | None = None
    expressible: float = 0.97
    """Share of the target's answers that the draft vocabulary holds."""
    seed: int = 0

    @property
    def tokens(self) -> int:
        """Of the batch."""
        return sum(self.lengths)

    @property
    def settings(self) -> TrainSettings:
        """The run's settings."""
        chunk: dict[str, Any] = {} if self.chunk is None else {"loss_chunk": self.chunk}
        return TrainSettings(
            ttt_length=self.ttt,
            batch_size=len(self.lengths),
            micro_batch_size=self.micro_batch,
            activation_checkpointing=self.recompute,
            loss=self.loss,  # type: ignore[arg-type]
            **chunk,
        )

    @property
    def draft_ids_W(self) -> Tensor:
        """Target token of every draft token: every so many of them, on the CPU."""
        return torch.arange(self.draft.draft_vocab_size) * (self.draft.vocab_size // self.draft.draft_vocab_size)

    def workload(self, positions: int) -> Workload:
        """The step as the forecast of memory sees it; ``positions`` carry loss at step 0."""
        draft = self.draft
        settings = self.settings
        target = TargetShape(0, 1, draft.target_hidden_size, 1, 1, draft.vocab_size, tied=False)
        return Workload(
            draft=draft,
            target=target,
            online=False,
            tokens=self.tokens,
            sequences=len(self.lengths),
            longest_sequence=max(self.lengths),
            positions=positions,
            ttt_steps=self.ttt,
            cpu=False,
            compute_bytes=2,
            state_bytes=2,
            recompute=self.recompute,
            full_head=self.loss != "kl",
            chunk=settings.loss_chunk,
        )


@dataclass
class MadeStates:
    """Batches of states that ``make`` makes; masks, tokens and answers are drawn on the CPU."""

    case: Case
    make: MakeTensor
    device: torch.device
    lengths: Sequence[int] = field(init=False)
    keep: bool = False
    """Batches are made once and stay, so that a step is timed without their making."""
    kept: dict[tuple[int, ...], TargetBatch] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.lengths = self.case.lengths

    def batch(self, rows: Sequence[int]) -> TargetBatch:
        """The rows side by side."""
        key = tuple(rows)
        batch = self.kept.get(key) or self._made(key)
        if self.keep:
            self.kept[key] = batch
        return batch

    def _made(self, rows: tuple[int, ...]) -> TargetBatch:
        draft = self.case.draft
        drawn = torch.Generator().manual_seed(self.case.seed)
        lengths = [self.lengths[row] for row in rows]
        size = sum(lengths)
        draft_ids_W = self.case.draft_ids_W
        answer_N = draft_ids_W[torch.randint(len(draft_ids_W), (size,), generator=drawn)]
        # The token after a draft token is not one: draft ids are several apart.
        top_N = answer_N + (torch.rand(size, generator=drawn) >= self.case.expressible)
        return TargetBatch(
            token_ids_N=self._sent(torch.randint(draft.vocab_size, (size,), generator=drawn)),
            loss_mask_N=torch.cat([torch.arange(n) >= n - round(n * self.case.mask) for n in lengths]),
            cu_seqlens=(0, *accumulate(lengths)),
            aux_NC=self.make(size, draft.aux_width),
            last_NH=self.make(size, draft.target_hidden_size),
            top_N=self._sent(top_N),
            rows=rows,
            top_host_N=top_N,
        )

    def _sent(self, x_N: Tensor) -> Tensor:
        """On the device, as a store's rows come there: nobody waits."""
        return x_N if self.device.type == "cpu" else x_N.pin_memory().to(self.device, non_blocking=True)


def random_tensors(device: torch.device, dtype: torch.dtype, drawn_on: str | None = None) -> MakeTensor:
    """Makes random tensors; drawn on the CPU they have the same numbers on every device."""

    def make(*sizes: int) -> Tensor:
        drawn = torch.randn(*sizes, device=drawn_on or device).mul_(sizes[-1] ** -0.5)
        return drawn.to(device, dtype)

    return make


def make_draft(case: Case, device: torch.device, dtype: torch.dtype, drawn_on: str | None = None) -> Draft:
    """A draft with random weights for the draft vocabulary of the case."""
    with torch.device(drawn_on or device):
        draft = Draft(case.draft)
    ids_W = case.draft_ids_W
    t2d_V = torch.zeros(case.draft.vocab_size, dtype=torch.bool)
    t2d_V[ids_W] = True
    draft = draft.to(device)
    draft.set_vocab((ids_W - torch.arange(len(ids_W))).to(device), t2d_V.to(device))
    return draft.cast(dtype)


def make_trainer(
    case: Case,
    draft: Draft,
    make: MakeTensor,
    *,
    timers: Timers | None = None,
    attention: str = "auto",
    keep_states: bool = False,
) -> Trainer:
    """The trainer of a case around a draft that is on its device, in its type."""
    config = case.draft
    settings = case.settings
    device = draft.fc.weight.device
    embedding_VH = make(config.vocab_size, config.target_hidden_size)
    draft_head = Head(make(config.draft_vocab_size, config.target_hidden_size))
    whole_head = None if case.loss == "kl" else Head(make(config.vocab_size, config.target_hidden_size))
    attend = choose_attention(attention, device, Silent())
    count = len(case.lengths)
    return Trainer(
        settings=settings,
        output_dir=Path(),
        batches=Batches(
            MadeStates(case, make, device, keep=keep_states), Sampler(count, count, case.seed), case.micro_batch
        ),
        eval_source=None,
        model=TTTModel(
            draft,
            TargetWeights(embedding_VH, draft_head, whole_head),
            attend,
            recompute=case.recompute,
            chunk=settings.loss_chunk,
        ),
        parallel=Parallel(),
        optimizer=Optimizer(list(draft.named_parameters()), max_grad_norm=settings.max_grad_norm),
        schedule=Schedule(settings, 100),
        state=TrainState(),
        saver=Saver(Path(), 1, SINGLE_PROCESS, Silent()),
        report=Silent(),
        timers=timers or Timers(device),
    )
