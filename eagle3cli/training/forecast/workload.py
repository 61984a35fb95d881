"""From settings and data to what a forecast of memory is made of: the largest micro batch of a process."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

from eagle3cli.backends.batches.prefetch import WINDOW_BYTES
from eagle3cli.backends.target.hf import LONGEST_SHARED
from eagle3cli.settings.tables import Settings
from eagle3cli.training.build import INIT_ELEMENTS
from eagle3cli.training.forecast.inputs import Data, Known
from eagle3cli.training.forecast.memory import Load, draft_weights
from eagle3cli.training.parallel import SHARD_FROM
from eagle3cli.training.sampler import Order
from eagle3cli.training.sharding import micro_batches, shares

LOOKED_AT = 200
"""Steps among which the largest micro batch is looked for."""


@dataclass(frozen=True)
class Largest:
    """The micro batch that takes most memory."""

    tokens: int
    sequences: int
    longest: int
    replies: int


def load_of(settings: Settings, known: Known, ranks: int, *, resumes: bool = False) -> Load:
    """The load of one of ``ranks`` processes; ``resumes``: a checkpoint has the weights already."""
    train, draft, data = settings.train, known.draft, known.data
    largest = largest_micro_batch(settings, data, ranks)
    aux = len(draft.aux_layers) * draft.target_hidden_size
    solved = min(sum(data.replies), INIT_ELEMENTS // aux) if settings.draft.init == "target" and not resumes else 0
    return Load(
        draft=draft,
        target=known.target,
        online=train.mode == "online",
        tokens=largest.tokens,
        sequences=largest.sequences,
        longest=largest.longest,
        rows=max(1, round(largest.replies * train.anchor_fraction)),
        depths=train.ttt_length,
        cpu=known.device == "cpu",
        compute=known.compute.itemsize,
        states=known.states.itemsize,
        recompute=train.activation_checkpointing,
        accumulates=_accumulates(settings, ranks),
        whole_head=train.loss != "kl",
        chunk=train.loss_chunk,
        shards=ranks if sharded(settings, known, ranks) else 1,
        ranks=ranks,
        tp_size=settings.target.tp_size,
        shared_prefix=data.shared_prefix and largest.sequences > 1 and largest.longest <= LONGEST_SHARED,
        muon=train.optimizer == "muon",
        initial_rows=solved,
        waiting=round(min(WINDOW_BYTES, data.tokens * data.bytes_per_token)),
        process=known.process,
    )


def sharded(settings: Settings, known: Known, ranks: int) -> bool:
    """Whether the ranks share the draft's weights, as ``spread_out`` decides it."""
    how, muon = settings.train.sharding, settings.train.optimizer == "muon"
    return ranks > 1 and (how == "fsdp" or (how == "auto" and not muon and draft_weights(known.draft) >= SHARD_FROM))


def largest_micro_batch(settings: Settings, data: Data, ranks: int) -> Largest:
    """Of the first steps, in the order in which the run will take its rows."""
    train, order = settings.train, Order(len(data.lengths), settings.train.batch_size, settings.train.seed)
    found, limit = [Largest(0, 0, 0, 0)], settings.data.max_length if train.mode == "online" else 2**62
    for rows in islice(map(order.batch, range(order.steps_per_epoch)), LOOKED_AT):
        for share in shares(rows, data.lengths, ranks):
            for part in micro_batches(share, train.micro_batch_size):
                lengths = [min(data.lengths[row], limit) for row in part]
                replies = sum(min(data.replies[row], limit) for row in part)
                found.append(Largest(sum(lengths), len(part), max(lengths, default=0), replies))
    return max(found, key=lambda micro: micro.tokens + train.ttt_length * micro.replies)


def _accumulates(settings: Settings, ranks: int) -> bool:
    micro = settings.train.micro_batch_size
    return micro is not None and micro * ranks < settings.train.batch_size
