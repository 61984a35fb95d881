"""What to change where a run would not fit the memory of its device: each change with the forecast that it leads to."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from eagle3cli.settings.tables import Settings
from eagle3cli.training.forecast.inputs import Known
from eagle3cli.training.forecast.memory import forecast
from eagle3cli.training.forecast.workload import load_of, sharded

SMALL_CHUNK = 500_000
"""Logits of the loss's chunk that is proposed."""


@dataclass(frozen=True)
class Proposal:
    """A change, as flags, and what the run would take with it."""

    flags: str
    bytes: int
    fits: bool


def proposals(settings: Settings, known: Known, ranks: int, available: int, *, resumes: bool = False) -> list[Proposal]:
    """Changes in the order in which to try them: alone, then together; ends with the first one that fits.

    A change that makes no difference is left out.
    """
    found: list[Proposal] = []
    best = forecast(load_of(settings, known, ranks, resumes=resumes)).bytes
    for flags, changed in _changes(settings, known, ranks):
        size = forecast(load_of(changed, known, ranks, resumes=resumes)).bytes
        if size >= best and size > available:
            continue
        found.append(Proposal(flags, size, size <= available))
        if found[-1].fits:
            break
    return found


def _changes(settings: Settings, known: Known, ranks: int) -> Iterator[tuple[str, Settings]]:
    singles = list(_singles(settings, known, ranks))
    yield from singles
    flags, together = [], settings
    smallest = {flag.split()[0]: (flag, changed) for flag, changed in singles}  # the last of each kind goes furthest
    for flag, changed in smallest.values():
        flags.append(flag)
        together = _merged(together, settings, changed)
        if len(flags) > 1:
            yield " ".join(flags), together
    yield from _shorter(together, " ".join(flags))


def _singles(settings: Settings, known: Known, ranks: int) -> Iterator[tuple[str, Settings]]:
    train = settings.train
    now = train.micro_batch_size or -(-train.batch_size // ranks)
    for size in range(now - 1, 0, -1):
        if train.batch_size % size == 0:
            yield f"--draft-micro-batch-size {size}", _with(settings, "train", micro_batch_size=size)
    if train.loss_chunk > SMALL_CHUNK:
        yield f"--loss-chunk {SMALL_CHUNK}", _with(settings, "train", loss_chunk=SMALL_CHUNK)
    if not train.activation_checkpointing:
        yield "--activation-checkpointing", _with(settings, "train", activation_checkpointing=True)
    if ranks > 1 and train.optimizer != "muon" and not sharded(settings, known, ranks):
        yield "--draft-sharding fsdp", _with(settings, "train", sharding="fsdp")
    if train.mode == "online":
        for size in range(settings.target.tp_size + 1, ranks + 1):
            if ranks % size == 0:
                yield f"--tp-size {size}", _with(settings, "target", tp_size=size)
        yield "--mode offline", _with(settings, "train", mode="offline")


def _shorter(settings: Settings, before: str) -> Iterator[tuple[str, Settings]]:
    """Rows cut at half of their length and less, where nothing else has been enough."""
    length = settings.data.max_length
    while (length := length // 2) >= 512:
        yield f"{before} --max-length {length}".strip(), _with(settings, "data", max_length=length)


def _merged(one: Settings, usual: Settings, other: Settings) -> Settings:
    """``one`` with what ``other`` has changed of ``usual``."""
    for table in ("train", "target"):
        was, now = getattr(usual, table).model_dump(), getattr(other, table).model_dump()
        one = _with(one, table, **{name: value for name, value in now.items() if value != was[name]})
    return one


def _with(settings: Settings, table: str, **values: object) -> Settings:
    return settings.model_copy(update={table: getattr(settings, table).model_copy(update=values)})


def first_change(settings: Settings, known: Known, ranks: int, available: int | None) -> str | None:
    """The flags of the first change that fits, else of the one to begin with; None where nothing helps."""
    found = proposals(settings, known, ranks, available or 0)
    return next((p.flags for p in found if p.fits), found[0].flags if found else None)
