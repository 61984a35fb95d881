"""What to change where a run would not fit the memory of its device: each change with the forecast that it leads to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from eagle3cli.settings.tables import Settings
from eagle3cli.training.context import can_share
from eagle3cli.training.forecast.inputs import RunInputs
from eagle3cli.training.forecast.memory import draft_weights, forecast
from eagle3cli.training.forecast.workload import training_workload
from eagle3cli.training.parallel import is_sharded
from eagle3cli.training.ttt.loss import chunk_elements

SHORTEST = 512
SMALLER_CHUNK = 8
"""How many times smaller than the device's usual one the loss's chunk that is proposed is."""


@dataclass(frozen=True)
class Proposal:
    """A change, as flags, and what the run would take with it."""

    flags: str
    bytes: int
    fits: bool


def proposals(
    settings: Settings, inputs: RunInputs, world_size: int, available: int, *, resumes: bool = False
) -> list[Proposal]:
    """Changes in the order in which to try them: alone, then together; ends with the first one that fits.

    A change that makes no difference is left out.
    """

    def peak_bytes(changed: Settings) -> int:
        return forecast(training_workload(changed, inputs, world_size, resumes=resumes)).peak_bytes

    helpful: list[Proposal] = []
    unchanged = peak_bytes(settings)
    for flags, changed in _changes(settings, inputs, world_size):
        size = peak_bytes(changed)
        if size >= unchanged and size > available:
            continue
        helpful.append(Proposal(flags, size, size <= available))
        if helpful[-1].fits:
            break
    return helpful


def _changes(settings: Settings, inputs: RunInputs, world_size: int) -> Iterator[tuple[str, Settings]]:
    singles = list(_singles(settings, inputs, world_size))
    yield from singles
    flags: list[str] = []
    together = settings
    smallest = {flag.split()[0]: (flag, changed) for flag, changed in singles}  # the last of each kind goes furthest
    for flag, changed in smallest.values():
        flags.append(flag)
        together = _merged(together, settings, changed)
        if len(flags) > 1:
            yield " ".join(flags), together
    for length in shorter_lengths(together, SHORTEST):  # where nothing else has been enough
        yield " ".join([*flags, f"--max-length {length}"]), together.updated("data", max_length=length)


def _singles(settings: Settings, inputs: RunInputs, world_size: int) -> Iterator[tuple[str, Settings]]:
    train = settings.train
    yield from _smaller_micro_batches(settings, world_size)
    usual = chunk_elements(torch.device(inputs.device).type)
    small = usual // SMALLER_CHUNK
    if (train.loss_chunk or usual) > small:
        yield f"--loss-chunk {small}", settings.updated("train", loss_chunk=small)
    if not train.activation_checkpointing:
        yield "--activation-checkpointing", settings.updated("train", activation_checkpointing=True)
    if world_size > 1 and train.optimizer != "muon" and not is_sharded(train, draft_weights(inputs.draft), world_size):
        yield "--draft-sharding fsdp", settings.updated("train", sharding="fsdp")
    beside = settings.target.tp_size if train.mode == "online" and not settings.launch.targets else 1
    for size in range(train.context_parallel + 1, world_size + 1):
        if world_size % size == 0 and can_share(size, beside) and not train.keep_states:
            yield f"--context-parallel {size}", settings.updated("train", context_parallel=size)
    if train.mode == "online":
        for size in range(settings.target.tp_size + 1, world_size + 1):
            if world_size % size == 0:
                yield f"--tp-size {size}", settings.updated("target", tp_size=size)
        yield "--mode offline", settings.updated("train", mode="offline")


def _smaller_micro_batches(settings: Settings, world_size: int) -> Iterator[tuple[str, Settings]]:
    train = settings.train
    tokens = train.max_tokens_per_gpu
    if tokens is not None:
        while (tokens := tokens // 2) >= SHORTEST:
            yield f"--max-tokens-per-gpu {tokens}", settings.updated("train", max_tokens_per_gpu=tokens)
        return
    micro_batch = train.micro_batch_size or -(-train.batch_size // world_size)
    for size in range(micro_batch - 1, 0, -1):
        if train.batch_size % size == 0:
            yield f"--draft-micro-batch-size {size}", settings.updated("train", micro_batch_size=size)


def shorter_lengths(settings: Settings, shortest: int) -> Iterator[int]:
    """Half of the rows' longest length, and so on."""
    length = settings.data.row_limit
    while (length := length // 2) >= shortest:
        yield length


def _merged(together: Settings, unchanged: Settings, changed: Settings) -> Settings:
    """``together`` with what ``changed`` has other than ``unchanged``."""
    for table in ("train", "target"):
        before = getattr(unchanged, table).model_dump()
        after = getattr(changed, table).model_dump()
        together = together.updated(table, **{name: value for name, value in after.items() if value != before[name]})
    return together


def first_change(
    settings: Settings, inputs: RunInputs, world_size: int, available: int, *, resumes: bool
) -> str | None:
    """The flags of the first change that fits, else of the one to begin with; None where nothing helps."""
    helpful = proposals(settings, inputs, world_size, available, resumes=resumes)
    return next((proposal.flags for proposal in helpful if proposal.fits), helpful[0].flags if helpful else None)
