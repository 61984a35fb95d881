"""From settings and data to what a forecast of memory is made of: the largest micro batch of a process."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from eagle3cli.backends.batches.prefetch import WINDOW_BYTES
from eagle3cli.backends.roles.source import AHEAD
from eagle3cli.backends.target.hf import LONGEST_SHARED
from eagle3cli.settings.tables import Settings
from eagle3cli.training.batches import micro_batches, partition, sampler_of
from eagle3cli.training.build import INIT_ELEMENTS
from eagle3cli.training.forecast.inputs import RowLengths, RunInputs
from eagle3cli.training.forecast.memory import Workload, draft_weights
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
    accumulates = train.micro_batch_size is not None and train.micro_batch_size * world_size < train.batch_size
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
        initial_rows=initial_rows,
        kept_tokens=kept_tokens(settings, data, world_size),
        ahead=AHEAD if apart else 0,
        prefetched=0 if apart else round(min(WINDOW_BYTES, data.tokens * data.bytes_per_token)),
        process_bytes=inputs.process_bytes,
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
    limit = settings.data.max_length if train.mode == "online" else 2**62
    row_lengths = [min(length, limit) for length in data.lengths]
    candidates = [MicroBatch(0, 0, 0, 0)]
    most = 0
    for rows in islice(map(order.batch, range(order.steps_per_epoch)), PLANNED_STEPS):
        for share in partition(rows, data.lengths, world_size):
            parts = micro_batches(share, train.micro_batch_size, row_lengths, train.max_tokens_per_gpu)
            most = max(most, len(parts))
            for part in parts:
                lengths = [row_lengths[row] for row in part]
                loss_tokens = sum(min(data.loss_tokens[row], limit) for row in part)
                candidates.append(MicroBatch(sum(lengths), len(part), max(lengths, default=0), loss_tokens))
    largest = max(candidates, key=lambda micro: micro.tokens + train.ttt_length * micro.loss_tokens)
    return PlannedSteps(largest, most)
