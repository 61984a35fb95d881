"""What a training run will cost before it starts: rows, steps, disk, memory of each device, and the launch line."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from eagle3cli.backends.target.hf import read_target_config
from eagle3cli.data.hidden_states.store import open_stores
from eagle3cli.data.tokens.cache import find_cache
from eagle3cli.data.tokens.on_policy import lines, warning
from eagle3cli.models.checkpoint import read_config
from eagle3cli.models.config import DraftConfig
from eagle3cli.runtime.files import free_bytes
from eagle3cli.runtime.plan import Plan
from eagle3cli.runtime.processes.job import check_roles
from eagle3cli.runtime.processes.launch import processes
from eagle3cli.runtime.units import parse_duration, size_text
from eagle3cli.settings.argv import to_argv
from eagle3cli.settings.tables import Settings
from eagle3cli.training.batches import sampler_of
from eagle3cli.training.checkpoint.load import check_place, list_checkpoints, saved_state
from eagle3cli.training.context import check_context
from eagle3cli.training.fingerprint import go_on, run_identity
from eagle3cli.training.forecast.inputs import RowLengths, inspect_inputs
from eagle3cli.training.forecast.memory import MASTER, draft_weights, forecast, kept_bytes
from eagle3cli.training.forecast.phases import Forecast, part_lines
from eagle3cli.training.forecast.proposals import Proposal, proposals
from eagle3cli.training.forecast.speed import forecast_speed
from eagle3cli.training.forecast.splits import plan_splits
from eagle3cli.training.forecast.target_rank import forecast_target_rank
from eagle3cli.training.forecast.workload import training_workload
from eagle3cli.training.inputs import draft_config_of
from eagle3cli.training.keep import FOLDER, kept_states_bytes
from eagle3cli.training.optim.schedule import total_steps
from eagle3cli.training.parallel import is_sharded

SPARE = 0.05
"""Share of a device's memory that a forecast should leave."""
FIELDS = (
    "train.*",
    "launch.target_gpus",
    "launch.transfer_encoding",
    "launch.dist_timeout",
    "target.*",
    "draft.*",
    "data.*",
)
"""The settings that a launch line repeats."""


def plan_training(settings: Settings, typed: Settings) -> Plan:
    """The plan of a run; ``typed`` are the settings as they were typed, for its launch line.

    Raises as the run would for settings, data and models that cannot be used.
    """
    parse_duration(settings.train.time_budget)
    check_place(settings.train)
    checkpoints = [] if settings.train.overwrite else list_checkpoints(settings.train.output_dir)
    draft = planned_draft(settings, checkpoints[-1] if checkpoints else None)
    how = _continuation(settings, draft, checkpoints[-1]) if checkpoints else ()
    inputs = inspect_inputs(settings, draft)
    data = inputs.data
    started = processes(settings.launch.gpus, settings.target.device)
    check_roles(settings, started)
    world_size = started - settings.launch.targets
    check_context(settings.train, world_size, 1 if settings.launch.targets else settings.target.tp_size)
    resumes = bool(checkpoints)
    work = training_workload(settings, inputs, world_size, resumes=resumes)
    memory = forecast(work)
    at_target = forecast_target_rank(work) if settings.launch.targets else None
    room = inputs.available
    if room is not None and inputs.device == "cpu":
        room //= started
    changes = []
    if room is not None and memory.peak_bytes > room * (1 - SPARE):
        changes = proposals(settings, inputs, world_size, round(room * (1 - SPARE)), resumes=resumes)
    disk = checkpoint_disk(settings, draft)
    kept = kept_states_bytes(settings, draft, data.lengths, data.loss_tokens) if settings.train.keep_states else 0
    launch = launch_lines(typed, started)
    order = sampler_of(settings.train, len(data.lengths))
    steps = total_steps(settings.train, order.steps_per_epoch)
    speed = forecast_speed(settings, inputs, world_size, order)
    splits = plan_splits(settings, inputs, started, room and round(room * (1 - SPARE)), resumes=resumes)
    sharded = is_sharded(settings.train, draft_weights(draft), world_size)
    return Plan(
        "train",
        reads=(_rows(data), *(lines(data.on_policy) if data.on_policy else ())),
        done=how,
        does=(
            _steps(settings, steps, order.steps_per_epoch),
            *_echoes(settings, kept_bytes(work)),
            *speed.lines(steps),
            *_memory(memory, room, inputs.device, world_size, sharded=sharded, targets=settings.launch.targets),
            *(_target_memory(at_target, settings.launch.targets) if at_target else ()),
            *map(_proposal_text, changes),
            *(splits.lines() if splits else ()),
            *launch,
        ),
        writes=(f"{settings.train.output_dir}: checkpoints {size_text(disk)} at most", *_kept(settings, kept)),
        warnings=(
            *_warnings(memory, room, disk + kept, settings, changes),
            *(_target_warnings(at_target, room) if at_target else ()),
            *_foreign(data),
        ),
        numbers={
            "rows": len(data.lengths),
            "tokens": data.tokens,
            "loss_tokens": sum(data.loss_tokens),
            "rows_known": data.exact,
            **({"on_policy": data.on_policy} if data.on_policy else {}),
            "steps": steps,
            "steps_per_epoch": order.steps_per_epoch,
            "processes": world_size,
            **({"target_processes": settings.launch.targets} if at_target else {}),
            "sharded": sharded,
            "device": inputs.device,
            "speed": speed.numbers(),
            **({"splits": splits.numbers()} if splits else {}),
            "memory": memory_numbers(memory, room),
            **({"target_memory": memory_numbers(at_target, room)} if at_target else {}),
            "proposals": [vars(change) for change in changes],
            "disk_bytes": disk,
            **({"kept_states_bytes": kept} if kept else {}),
            "launch": list(launch),
        },
    )


def _continuation(settings: Settings, draft: DraftConfig, checkpoint: Path) -> tuple[str, ...]:
    """What is there of the run, and how it goes on. Raises UsageError as the run would where it cannot."""
    state = saved_state(checkpoint)
    cache = find_cache(settings) if settings.train.mode == "online" else None
    identity = run_identity(settings, draft, cache)
    continuation = go_on(settings.train.output_dir, state, settings, identity)
    return (f"{checkpoint.name} is there: the run goes on from it", *continuation.notes)


def planned_draft(settings: Settings, checkpoint: Path | None = None) -> DraftConfig:
    """The config of the draft that would be trained, or goes on from ``checkpoint``."""
    config = draft_config_of(settings, read_target_config(settings.target))
    paths = settings.data.train_hidden_states_path or (settings.hidden_states.output_path / "train",)
    if settings.train.mode == "offline" and settings.draft.init != "draft" and (paths[0] / "manifest.json").is_file():
        size = open_stores(paths[:1]).vocab.size if checkpoint is None else read_config(checkpoint)["draft_vocab_size"]
        config = replace(config, draft_vocab_size=size)
    return config


def checkpoint_disk(settings: Settings, draft: DraftConfig) -> int:
    """Bytes of all checkpoints that are kept, one more while it is written, and the best draft."""
    weights = draft_weights(draft)
    served = weights * (4 if settings.train.dtype == "float32" else 2)
    copies = (2 if settings.train.optimizer == "muon" else 3) + (settings.train.ema_decay is not None)
    return (settings.train.keep_checkpoints + 1) * (served + weights * MASTER * copies) + served


def launch_lines(settings: Settings, world_size: int) -> tuple[str, ...]:
    """The command as it can be typed anywhere, and the same under torchrun where there are several processes."""
    words = shlex.join(to_argv(settings, FIELDS))
    if world_size == 1:
        return (f"launch: eagle3 train {words}",)
    again = "several nodes: add --nnodes, --rdzv-backend c10d and --rdzv-endpoint HOST:PORT"
    return (
        f"launch: eagle3 train --gpus {world_size} {words}",
        f"or: torchrun --nproc-per-node {world_size} -m eagle3cli train {words} ({again})",
    )


def memory_numbers(memory: Forecast, room: int | None) -> dict[str, Any]:
    """The forecast for JSON."""
    return {
        "peak_bytes": memory.peak_bytes,
        "peak_at": memory.peak.name,
        "parts": {name: size for name, size in memory.peak.parts.items() if size},
        "moments": {phase.name: phase.bytes for phase in memory.phases},
        "room": room,
    }


def _rows(data: RowLengths) -> str:
    if not data.exact:
        return f"{data.where}: {len(data.lengths):,} lines, not tokenized yet: at most {data.tokens:,} tokens"
    with_loss = sum(data.loss_tokens)
    counts = f"{len(data.lengths):,} rows, {data.tokens:,} tokens, {with_loss:,} with loss"
    return f"{data.where}: {counts} ({with_loss / max(1, data.tokens):.0%})"


def _foreign(data: RowLengths) -> list[str]:
    """Where an earlier pass has seen that replies are not the target's own."""
    text = warning(data.on_policy, "train") if data.on_policy else None
    return [] if text is None else [text]


def _steps(settings: Settings, steps: int | None, steps_per_epoch: int) -> str:
    train = settings.train
    per_epoch = f"{steps_per_epoch:,} an epoch, batch {train.batch_size}"
    if train.max_tokens_per_gpu is not None:
        per_epoch += f", {train.max_tokens_per_gpu:,} tokens at once"
    if steps is None:
        return f"steps for {train.time_budget} ({per_epoch})"
    return f"{steps:,} steps, {steps / steps_per_epoch:.1f} epochs ({per_epoch})"


def _kept(settings: Settings, kept: int) -> list[str]:
    if not settings.train.keep_states:
        return []
    return [f"{settings.train.output_dir / FOLDER}: the target's states, {size_text(kept)}"]


def _echoes(settings: Settings, kept: int) -> list[str]:
    train = settings.train
    if train.mode == "offline" or train.echo_factor == 1:
        return []
    where = "the computer's memory of each process"
    return [f"each batch {train.echo_factor} times, the states of {train.echo_buffer} in {where}: {size_text(kept)}"]


def _memory(
    memory: Forecast, room: int | None, device: str, world_size: int, *, sharded: bool, targets: int
) -> list[str]:
    placement = "in shards" if sharded else "whole on each"
    each = f"each of {world_size} processes, the draft {placement}," if world_size > 1 else "one process"
    if targets:
        each += " that trains"
    have = "which is not here to look at" if room is None else f"{size_text(room)} there for it"
    peak = f"{size_text(memory.peak_bytes)}, most at {memory.peak.name!r}"
    return [f"memory of {each} on {device}: {peak}; {have}", *part_lines(memory)]


def _target_memory(memory: Forecast, targets: int) -> list[str]:
    each = f"each of {targets} processes" if targets > 1 else "the process"
    return [f"memory of {each} for the target: {size_text(memory.peak_bytes)}", *part_lines(memory)]


def _target_warnings(memory: Forecast, room: int | None) -> list[str]:
    if room is None or memory.peak_bytes <= room * (1 - SPARE):
        return []
    fix = "spread it over more processes (--tp-size), or give a pass fewer tokens (--max-tokens-per-gpu)"
    return [f"{size_text(memory.peak_bytes)} for the target do not fit into {size_text(room)}: {fix}"]


def _proposal_text(change: Proposal) -> str:
    return f"with {change.flags}: {size_text(change.bytes)}{', which fits' if change.fits else ''}"


def _warnings(
    memory: Forecast, room: int | None, disk: int, settings: Settings, changes: Sequence[Proposal]
) -> list[str]:
    warnings = []
    free = free_bytes(settings.train.output_dir)
    if room is not None and memory.peak_bytes > room * (1 - SPARE):
        fitting = next((change.flags for change in changes if change.fits), None)
        way = f"use {fitting}" if fitting else "no change of settings makes it fit: use more or larger devices"
        warnings.append(f"{size_text(memory.peak_bytes)} do not fit into {size_text(room)}: {way}")
    if disk > free:
        what = "checkpoints and states" if settings.train.keep_states else "checkpoints"
        warnings.append(f"{size_text(disk)} of {what}, {size_text(free)} free at {settings.train.output_dir}")
    return warnings
