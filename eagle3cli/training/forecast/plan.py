"""What a training run will cost before it starts: rows, steps, disk, memory of each device, and the launch line."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from eagle3cli.backends.target.hf import read_target_config
from eagle3cli.data.hidden_states.store import open_stores
from eagle3cli.models.config import DraftConfig
from eagle3cli.runtime.files import free_bytes
from eagle3cli.runtime.launch import processes
from eagle3cli.runtime.plan import Plan
from eagle3cli.runtime.units import size_text
from eagle3cli.settings.argv import to_argv
from eagle3cli.settings.tables import Settings
from eagle3cli.training.build import draft_config_of, parse_duration
from eagle3cli.training.checkpoint.load import list_checkpoints
from eagle3cli.training.forecast.inputs import Known, look
from eagle3cli.training.forecast.memory import MASTER, Forecast, draft_weights, forecast, part_lines
from eagle3cli.training.forecast.proposals import Proposal, proposals
from eagle3cli.training.forecast.speed import speed_of
from eagle3cli.training.forecast.workload import load_of, sharded
from eagle3cli.training.sampler import Order

SPARE = 0.05
"""Share of a device's memory that a forecast should leave."""


FIELDS = ("train.*", "launch.dist_timeout", "target.*", "draft.*", "data.*")
"""The settings that a launch line repeats."""


def plan_training(settings: Settings, given: Settings) -> Plan:
    """The plan of a run; ``given`` are the settings as they were typed, for its launch line.

    Raises as the run would for settings, data and models that cannot be used.
    """
    parse_duration(settings.train.time_budget)
    draft = planned_draft(settings)
    known = look(settings, draft)
    ranks = processes(settings.launch.gpus)
    checkpoints = [] if settings.train.overwrite else list_checkpoints(settings.train.output_dir)
    found = forecast(load_of(settings, known, ranks, resumes=bool(checkpoints)))
    room = None if known.available is None else known.available // (ranks if known.device == "cpu" else 1)
    changes = []
    if room is not None and found.bytes > room * (1 - SPARE):
        changes = proposals(settings, known, ranks, round(room * (1 - SPARE)), resumes=bool(checkpoints))
    disk = checkpoint_disk(settings, draft)
    launch = launch_lines(given, ranks)
    order = Order(len(known.data.lengths), settings.train.batch_size, settings.train.seed)
    speed = speed_of(settings, known, ranks, order)
    return Plan(
        "train",
        reads=(_rows(known),),
        done=tuple(f"{checkpoints[-1].name} is there: the run goes on from it" for _ in checkpoints[-1:]),
        does=(
            *_steps(settings, order),
            *speed.lines(total_steps(settings, order)),
            *_memory(found, room, known, ranks, in_shards=sharded(settings, known, ranks)),
            *map(_told, changes),
            *launch,
        ),
        writes=(f"{settings.train.output_dir}: checkpoints {size_text(disk)} at most",),
        warnings=tuple(_warnings(found, room, disk, settings, changes)),
        numbers={
            "rows": len(known.data.lengths),
            "tokens": known.data.tokens,
            "loss_tokens": sum(known.data.replies),
            "rows_known": known.data.known,
            "steps": total_steps(settings, order),
            "steps_per_epoch": order.steps_per_epoch,
            "processes": ranks,
            "sharded": sharded(settings, known, ranks),
            "device": known.device,
            "speed": speed.numbers(),
            "memory": memory_numbers(found, room),
            "proposals": [vars(change) for change in changes],
            "disk_bytes": disk,
            "launch": list(launch),
        },
    )


def planned_draft(settings: Settings) -> DraftConfig:
    """The config of the draft that would be trained."""
    config = draft_config_of(settings, read_target_config(settings.target))
    paths = settings.data.train_hidden_states_path or (settings.hidden_states.output_path / "train",)
    if settings.train.mode == "offline" and settings.draft.init != "draft" and (paths[0] / "manifest.json").is_file():
        config = replace(config, draft_vocab_size=open_stores(paths[:1]).vocab.size)
    return config


def total_steps(settings: Settings, order: Order) -> int | None:
    """Optimiser steps; None where a time budget alone ends the run."""
    if settings.train.time_budget is not None:
        return settings.train.total_steps
    return min(order.steps_per_epoch * settings.train.num_epochs, settings.train.total_steps or 10**12)


def checkpoint_disk(settings: Settings, draft: DraftConfig) -> int:
    """Bytes of all checkpoints that are kept, one more while it is written, and the best draft."""
    weights = draft_weights(draft)
    served = weights * (4 if settings.train.dtype == "float32" else 2)
    moments = 1 if settings.train.optimizer == "muon" else 2
    return (settings.train.keep_checkpoints + 1) * (served + weights * MASTER * (1 + moments)) + served


def launch_lines(settings: Settings, ranks: int) -> tuple[str, ...]:
    """The command as it can be typed anywhere, and the same under torchrun where there are several processes."""
    words = shlex.join(to_argv(settings, FIELDS))
    if ranks == 1:
        return (f"launch: eagle3 train {words}",)
    again = "several nodes: add --nnodes, --rdzv-backend c10d and --rdzv-endpoint HOST:PORT"
    return (
        f"launch: eagle3 train --gpus {ranks} {words}",
        f"or: torchrun --nproc-per-node {ranks} -m eagle3cli train {words} ({again})",
    )


def memory_numbers(found: Forecast, room: int | None) -> dict[str, Any]:
    """The forecast for JSON."""
    moments = {moment.name: moment.bytes for moment in found.moments}
    parts = {name: size for name, size in found.peak.parts.items() if size}
    return {"peak_bytes": found.bytes, "peak_at": found.peak.name, "parts": parts, "moments": moments, "room": room}


def _rows(known: Known) -> str:
    data, share = known.data, sum(known.data.replies) / max(1, known.data.tokens)
    if not data.known:
        return f"{data.where}: {len(data.lengths):,} lines, not tokenised yet: at most {data.tokens:,} tokens"
    counts = f"{len(data.lengths):,} rows, {data.tokens:,} tokens, {sum(data.replies):,} with loss ({share:.0%})"
    return f"{data.where}: {counts}"


def _steps(settings: Settings, order: Order) -> list[str]:
    train, steps = settings.train, total_steps(settings, order)
    per_epoch = f"{order.steps_per_epoch:,} an epoch, batch {train.batch_size}"
    if steps is None:
        return [f"steps for {train.time_budget} ({per_epoch})"]
    return [f"{steps:,} steps, {steps / order.steps_per_epoch:.1f} epochs ({per_epoch})"]


def _memory(found: Forecast, room: int | None, known: Known, ranks: int, *, in_shards: bool) -> list[str]:
    kept = ", the draft in shards" if in_shards else ", the draft whole on each"
    each = f"each of {ranks} processes{kept}," if ranks > 1 else "one process"
    have = "which is not here to look at" if room is None else f"{size_text(room)} there for it"
    first = f"memory of {each} on {known.device}: {size_text(found.bytes)}, most at {found.peak.name!r}; {have}"
    return [first, *part_lines(found)]


def _told(change: Proposal) -> str:
    return f"with {change.flags}: {size_text(change.bytes)}{', which fits' if change.fits else ''}"


def _warnings(
    found: Forecast, room: int | None, disk: int, settings: Settings, changes: Sequence[Proposal]
) -> list[str]:
    warnings, free = [], free_bytes(settings.train.output_dir)
    if room is not None and found.bytes > room * (1 - SPARE):
        fitting = next((change.flags for change in changes if change.fits), None)
        way = f"use {fitting}" if fitting else "no change of settings makes it fit: use more or larger devices"
        warnings.append(f"{size_text(found.bytes)} do not fit into {size_text(room)}: {way}")
    if disk > free:
        warnings.append(f"{size_text(disk)} of checkpoints, {size_text(free)} free at {settings.train.output_dir}")
    return warnings
