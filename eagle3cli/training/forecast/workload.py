"""From settings and data to what a forecast of memory is made of: the largest micro batch of a process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import accumulate, islice

import torch

from eagle3cli.backends.batches.batch import partition
from eagle3cli.backends.batches.context import deal
from eagle3cli.backends.batches.prefetch import WINDOW_BYTES
from eagle3cli.backends.roles.source import AHEAD
from eagle3cli.backends.target.hf import LONGEST_SHARED
from eagle3cli.settings.tables import Settings
from eagle3cli.training.batches import micro_batches, sampler_of
from eagle3cli.training.build import INIT_ELEMENTS
from eagle3cli.training.forecast.inputs import RowLengths, RunInputs
from eagle3cli.training.forecast.memory import draft_weights
from eagle3cli.training.forecast.sizes import Workload
from eagle3cli.training.parallel import is_sharded

PLANNED_STEPS = 200
"""Steps among which the largest micro batch is looked for."""


@dataclass(frozen=True)
class MicroBatch:
    """The sizes of a micro batch."""

    tokens: int
    sequences: int
    longest_sequence: int
    loss_tokens: int
    shared_tokens: int = 0
    """Tokens of its sequences, where they are dealt to several processes; else 0."""

    def passes(self, steps: int) -> int:
        """About how much it takes: its tokens, and those with loss once more for every step of the unroll."""
        return self.tokens + steps * self.loss_tokens


@dataclass(frozen=True)
class PlannedSteps:
    """What a run's first steps are cut into."""

    largest: MicroBatch
    most_micro_batches: int
    """Of a process and step."""


def training_workload(settings: Settings, inputs: RunInputs, world_size: int, *, resumes: bool = False) -> Workload:
    """The workload of one of ``world_size`` processes that train; ``resumes``: a checkpoint has the weights already."""
    train = settings.train
    apart = train.mode == "online" and settings.launch.targets > 0
    draft = inputs.draft
    data = inputs.data
    steps = planned_steps(settings, data, world_size)
    largest = steps.largest
    initial_rows = 0
    if settings.draft.init == "target" and not resumes:
        initial_rows = min(sum(data.loss_tokens), INIT_ELEMENTS // draft.aux_width)
    accumulates = train.micro_batch_size is not None and (
        train.micro_batch_size * world_size < train.batch_size * train.context_parallel
    )
    if train.max_tokens_per_gpu is not None:
        accumulates = steps.most_micro_batches > 1
    return Workload(
        draft=draft,
        target=inputs.target,
        online=train.mode == "online" and not apart,
        tokens=largest.tokens,
        sequences=largest.sequences,
        longest_sequence=largest.longest_sequence,
        positions=max(1, round(largest.loss_tokens * train.anchor_fraction)),
        ttt_steps=train.ttt_length,
        cpu=inputs.device == "cpu",
        compute_bytes=inputs.compute_dtype.itemsize,
        state_bytes=inputs.state_dtype.itemsize,
        recompute=train.activation_checkpointing,
        accumulates=accumulates,
        full_head=train.loss != "kl",
        chunk=train.loss_chunk,
        shards=world_size if is_sharded(train, draft_weights(draft), world_size) else 1,
        world_size=world_size,
        tp_size=settings.target.tp_size,
        shared_prefix=data.shared_prefix and largest.sequences > 1 and largest.longest_sequence <= LONGEST_SHARED,
        muon=train.optimizer == "muon",
        ema=train.ema_decay is not None,
        initial_rows=initial_rows,
        kept_tokens=kept_tokens(settings, data, world_size),
        ahead=AHEAD if apart else 0,
        prefetched=0 if apart else round(min(WINDOW_BYTES, data.tokens * data.bytes_per_token)),
        process_bytes=inputs.process_bytes,
        shared_tokens=largest.shared_tokens,
        context=train.context_parallel,
    )


def kept_tokens(settings: Settings, data: RowLengths, world_size: int) -> int:
    """Tokens of a process's share of the batches that are kept for echoes."""
    train = settings.train
    if train.mode == "offline" or train.echo_factor == 1:
        return 0
    rows = min(train.echo_buffer * train.batch_size, len(data.lengths))
    return round(data.tokens / max(1, len(data.lengths)) * rows / world_size)


def planned_steps(settings: Settings, data: RowLengths, world_size: int) -> PlannedSteps:
    """The first steps, in the order in which the run will take its rows."""
    train = settings.train
    order = sampler_of(train, len(data.lengths))
    limit = settings.data.row_limit if train.mode == "online" else 2**62
    row_lengths = [min(length, limit) for length in data.lengths]
    context = train.context_parallel
    of_group = None if train.max_tokens_per_gpu is None else train.max_tokens_per_gpu * context
    largest = MicroBatch(0, 0, 0, 0)
    rows_of_largest: list[tuple[int, int]] = []
    most = 0
    for rows in islice(map(order.batch, range(order.steps_per_epoch)), PLANNED_STEPS):
        for share in partition(rows, data.lengths, max(1, world_size // context)):
            parts = micro_batches(share, train.micro_batch_size, row_lengths, of_group)
            most = max(most, len(parts))
            for part in parts:
                sizes = [(row_lengths[row], min(data.loss_tokens[row], limit)) for row in part]
                tokens, loss_tokens = (sum(counts) for counts in zip(*sizes, strict=True)) if sizes else (0, 0)
                micro = MicroBatch(tokens, len(part), max((length for length, _ in sizes), default=0), loss_tokens)
                if micro.passes(train.ttt_length) > largest.passes(train.ttt_length):
                    largest, rows_of_largest = micro, sizes
    if context > 1 and rows_of_largest:
        largest = _of_one_rank(largest, rows_of_largest, context, train.ttt_length)
    return PlannedSteps(largest, most)


def _of_one_rank(whole: MicroBatch, sizes: list[tuple[int, int]], context: int, steps: int) -> MicroBatch:
    """What the busiest of the processes holds that share a micro batch of rows with so many tokens and tokens with
    loss, these at the rows' ends."""
    cu_seqlens = tuple(accumulate((length for length, _ in sizes), initial=0))
    mask_N = torch.cat([torch.arange(length) >= length - loss for length, loss in sizes])
    parts = []
    for rank in range(context):
        shard = deal(cu_seqlens, mask_N, rank, context, steps=steps)
        loss_tokens = int(mask_N[shard.packed_n[shard.own_M]].sum())
        parts.append(replace(whole, tokens=len(shard.packed_n), loss_tokens=loss_tokens, shared_tokens=whole.tokens))
    return max(parts, key=lambda part: part.passes(steps))
