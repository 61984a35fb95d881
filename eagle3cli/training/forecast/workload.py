"""From settings and data to what a forecast of memory is made of: the largest micro batch of a process."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from eagle3cli.backends.batches.prefetch import WINDOW_BYTES
from eagle3cli.backends.target.hf import LONGEST_SHARED
from eagle3cli.settings.tables import Settings
from eagle3cli.training.batches import Sampler, micro_batches, partition
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


def training_workload(settings: Settings, inputs: RunInputs, world_size: int, *, resumes: bool = False) -> Workload:
    """The workload of one of ``world_size`` processes; ``resumes``: a checkpoint has the weights already."""
    train = settings.train
    draft = inputs.draft
    data = inputs.data
    largest = largest_micro_batch(settings, data, world_size)
    initial_rows = 0
    if settings.draft.init == "target" and not resumes:
        initial_rows = min(sum(data.loss_tokens), INIT_ELEMENTS // draft.aux_width)
    micro_batch = train.micro_batch_size
    return Workload(
        draft=draft,
        target=inputs.target,
        online=train.mode == "online",
        tokens=largest.tokens,
        sequences=largest.sequences,
        longest_sequence=largest.longest_sequence,
        positions=max(1, round(largest.loss_tokens * train.anchor_fraction)),
        ttt_steps=train.ttt_length,
        cpu=inputs.device == "cpu",
        compute_bytes=inputs.compute_dtype.itemsize,
        state_bytes=inputs.state_dtype.itemsize,
        recompute=train.activation_checkpointing,
        accumulates=micro_batch is not None and micro_batch * world_size < train.batch_size,
        full_head=train.loss != "kl",
        chunk=train.loss_chunk,
        shards=world_size if is_sharded(train, draft_weights(draft), world_size) else 1,
        world_size=world_size,
        tp_size=settings.target.tp_size,
        shared_prefix=data.shared_prefix and largest.sequences > 1 and largest.longest_sequence <= LONGEST_SHARED,
        muon=train.optimizer == "muon",
        initial_rows=initial_rows,
        prefetched=round(min(WINDOW_BYTES, data.tokens * data.bytes_per_token)),
        process_bytes=inputs.process_bytes,
    )


def largest_micro_batch(settings: Settings, data: RowLengths, world_size: int) -> MicroBatch:
    """Of the first steps, in the order in which the run will take its rows."""
    train = settings.train
    order = Sampler(len(data.lengths), train.batch_size, train.seed)
    limit = settings.data.max_length if train.mode == "online" else 2**62
    candidates = [MicroBatch(0, 0, 0, 0)]
    for rows in islice(map(order.batch, range(order.steps_per_epoch)), PLANNED_STEPS):
        for share in partition(rows, data.lengths, world_size):
            for part in micro_batches(share, train.micro_batch_size):
                lengths = [min(data.lengths[row], limit) for row in part]
                loss_tokens = sum(min(data.loss_tokens[row], limit) for row in part)
                candidates.append(MicroBatch(sum(lengths), len(part), max(lengths, default=0), loss_tokens))
    return max(candidates, key=lambda micro: micro.tokens + train.ttt_length * micro.loss_tokens)
