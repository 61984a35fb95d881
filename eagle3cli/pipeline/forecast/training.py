"""Training and evaluation of a run whose rows are not there yet: steps, memory and time at both ends of the ranges."""

from __future__ import annotations

from dataclasses import replace

import torch

from eagle3cli.backends.target.hf import pick_dtype
from eagle3cli.pipeline.forecast.machine import GPU_MEMORY, START_SECONDS, Machine
from eagle3cli.pipeline.forecast.models import Shapes
from eagle3cli.pipeline.forecast.ranges import Range, as_range, between
from eagle3cli.runtime.devices import compute_type, memory_of, resident_bytes
from eagle3cli.runtime.units import parse_duration
from eagle3cli.settings.tables import Settings
from eagle3cli.training.batches import sampler_of
from eagle3cli.training.eval.measure import rows_at_once
from eagle3cli.training.forecast.inputs import CUDA_CONTEXT, RowLengths, RunInputs
from eagle3cli.training.forecast.memory import draft_weights, evaluation_forecast, forecast
from eagle3cli.training.forecast.plan import SPARE, checkpoint_disk
from eagle3cli.training.forecast.sizes import Workload
from eagle3cli.training.forecast.speed import forecast_speed
from eagle3cli.training.forecast.splits import plan_splits
from eagle3cli.training.forecast.workload import training_workload
from eagle3cli.training.optim.schedule import total_steps

MOST_PLANNED = 20_000
"""Rows that a forecast is made with; steps are counted with all."""
GPU_SPEED = Range(0.9, 2.0)
"""Measured time against the roofline's: it leaves out what starts kernels and waits for data."""
CPU_SPEED = Range(0.4, 3.0)
"""The same on a processor, whose speed is a timed product's times a constant."""
EVALUATION = Range(0.2, 1.0)
"""Time of a token that is evaluated against one that is trained on."""
SHORTEST_ROW = 8


def steps_of(settings: Settings, rows: Range) -> tuple[Range | None, Range]:
    """Steps of the run (None: a time decides), and rows that it sees."""
    train = settings.train
    low, high = (total_steps(train, sampler_of(train, max(1, round(n))).steps_per_epoch) for n in (rows.low, rows.high))
    if low is None or high is None:
        return None, Range(0, rows.high * 1000)
    full = rows.low / (train.batch_size * max(1, -(-rows.low // train.batch_size)))  # an epoch's last batch is smaller
    seen = Range(low * train.batch_size * full, high * train.batch_size)
    epochs = rows * (train.num_epochs * (train.echo_factor if train.mode == "online" else 1))
    return Range(low, high), seen if train.total_steps is not None else epochs


def memory_of_training(machine: Machine, shapes: Shapes, rows: Range, row: Range, loss: Range) -> Range:
    """Bytes of one device at its peak, from short rows to the longest that there may be."""
    longest = machine.settings.data.row_limit
    low = forecast(_workload(machine, shapes, rows.low, row.low, loss.low)).peak_bytes
    high = forecast(_workload(machine, shapes, rows.high, longest, max(loss.high, longest / 2))).peak_bytes
    return between(low, high)


def seconds_of_training(machine: Machine, shapes: Shapes, rows: Range, row: Range, loss: Range, held: Range) -> Range:
    """All steps with the evaluations between them; what ``train.time_budget`` says where it is given."""
    settings = machine.settings
    budget = parse_duration(settings.train.time_budget)
    if budget is not None:
        return Range(0.5 * budget, 1.2 * budget) + START_SECONDS
    steps, _ = steps_of(settings, rows)
    assert steps is not None  # without a time, epochs or steps decide
    step = _steps_seconds(machine, shapes, rows, row, loss)
    train = settings.train
    evaluated = held.at_most(train.eval_rows or held.high)
    batches = Range(evaluated.low / train.batch_size, evaluated.high / train.batch_size + 1) * EVALUATION
    evaluations = Range(steps.low // train.eval_interval, steps.high // train.eval_interval + 1)
    worked = Range(steps.low + evaluations.low * batches.low, steps.high + evaluations.high * batches.high)
    return worked * step + START_SECONDS


def tokens_within(machine: Machine, shapes: Shapes, rows: Range, row: Range, loss: Range, seconds: float) -> Range:
    """Tokens that are trained on in ``seconds``."""
    step = _steps_seconds(machine, shapes, rows, row, loss)
    batch = machine.settings.train.batch_size
    return Range(seconds / step.high * batch * row.low, seconds / step.low * batch * row.high)


def _steps_seconds(machine: Machine, shapes: Shapes, rows: Range, row: Range, loss: Range) -> Range:
    """Seconds of one step, from short rows to long ones."""
    ends = [(rows.low, row.low, loss.low), (rows.high, row.high, loss.high)]
    low, high = (_step_seconds(machine, shapes, *end) for end in ends)
    return Range(low.low, high.high)


def seconds_of_evaluation(machine: Machine, shapes: Shapes, tokens: Range, row: Range, loss: Range) -> Range:
    """eval over rows of ``tokens`` in all: the draft at every depth, and the target where no store has its states."""
    settings = machine.settings
    timed = machine.calibration and machine.calibration.training
    target = as_range(0.0)
    if settings.train.mode == "online":
        target = machine.capture_seconds(tokens, shapes)
    if timed:
        trained = timed.seconds / (timed.rows * timed.row) * (settings.eval.depths / settings.train.ttt_length)
        return tokens * trained * EVALUATION + target + START_SECONDS
    work = tokens * (2 * draft_weights(shapes.draft) * settings.eval.depths)
    return work / machine.flops * Range(1, 3) + target + START_SECONDS


def disk_of_training(settings: Settings, shapes: Shapes, steps: Range | None) -> Range:
    """Checkpoints that stay and the best draft; while one is written there is one more."""
    most = checkpoint_disk(settings, shapes.draft)
    one = most / (settings.train.keep_checkpoints + 2)
    saves = 1 if steps is None else steps.low // settings.train.save_interval
    kept = max(1, min(settings.train.keep_checkpoints, saves))
    return Range(0.9 * one * kept, 1.02 * most + 2_000_000)


def split_lines(machine: Machine, shapes: Shapes, rows: float, row: float, loss: float) -> list[str]:
    """The best split of several GPUs between target and draft, for people; nothing on a processor, whose cores both
    sides share."""
    if machine.device == "cpu":
        return []
    room = round((machine.memory or GPU_MEMORY) * (1 - SPARE))
    splits = plan_splits(machine.settings, _inputs(machine, shapes, rows, row, loss), machine.gpus, room)
    return [] if splits is None else [f"train: {line}" for line in splits.lines()]


def memory_of_evaluation(machine: Machine, shapes: Shapes, row: Range) -> Range:
    """Bytes of eval's process."""
    settings = machine.settings
    low, high = (
        evaluation_forecast(
            replace(
                _workload(machine, shapes, rows, length, length / 2),
                tokens=round(rows * length),
                sequences=rows,
                longest_sequence=round(length),
                positions=round(rows * length * share),
                ttt_steps=settings.eval.depths,
            )
        ).peak_bytes
        for length, share in ((row.low, 0.2), (settings.data.row_limit, 1.0))
        for rows in (rows_at_once(round(length)),)
    )
    return between(low, high)


def _workload(machine: Machine, shapes: Shapes, rows: float, row: float, loss: float) -> Workload:
    inputs = _inputs(machine, shapes, rows, row, loss)
    return training_workload(machine.settings, inputs, machine.gpus - _targets(machine))


def _targets(machine: Machine) -> int:
    """Devices that hold the target alone."""
    settings = machine.settings
    return settings.launch.targets if settings.train.mode == "online" and machine.gpus > settings.launch.targets else 0


def _step_seconds(machine: Machine, shapes: Shapes, rows: float, row: float, loss: float) -> Range:
    """A step by the model of its speed, within what such models are off; by a step that was timed where one was."""
    timed = machine.calibration and machine.calibration.training
    if not timed:
        off = GPU_SPEED if machine.device == "cuda" else CPU_SPEED
        return off * _modelled_seconds(machine, shapes, rows, row, loss)
    settings = machine.settings
    targets = _targets(machine)
    draft = replace(machine, gpus=machine.gpus - targets, settings=settings.updated("train", mode="offline"))
    alone = replace(machine, gpus=1, settings=draft.settings.updated("train", batch_size=timed.rows))
    # The model says only how much more this step is than the one that was timed: how fast the machine is cancels out.
    larger = _modelled_seconds(draft, shapes, rows, row, loss)
    larger /= _modelled_seconds(alone, shapes, timed.rows, timed.row, timed.loss)
    seconds = timed.seconds * larger
    if settings.train.mode != "online":
        return seconds
    live = settings.train.batch_size * row * settings.train.live_share
    passes = machine.capture_seconds(as_range(live), shapes)
    if not targets or machine.device == "cpu":  # whose cores both sides share
        return seconds + passes
    passes *= machine.gpus / targets
    return Range(max(seconds.low, passes.low), max(seconds.high, passes.high))


def _modelled_seconds(machine: Machine, shapes: Shapes, rows: float, row: float, loss: float) -> float:
    inputs = _inputs(machine, shapes, rows, row, loss)
    train = machine.settings.train
    order = sampler_of(train, len(inputs.data.lengths))
    return forecast_speed(machine.settings, inputs, machine.gpus - _targets(machine), order).step.total


def _inputs(machine: Machine, shapes: Shapes, rows: float, row: float, loss: float) -> RunInputs:
    settings = machine.settings
    device = torch.device(machine.device)
    count = max(1, min(MOST_PLANNED, round(rows)))
    length = max(SHORTEST_ROW, round(row))
    with_loss = max(1, min(length, round(loss)))
    is_cpu = machine.device == "cpu"
    state_dtype = torch.float32 if is_cpu else torch.bfloat16
    if settings.train.mode == "online":
        state_dtype = pick_dtype(settings.target.dtype, device, shapes.config)
    return RunInputs(
        draft=shapes.draft,
        target=shapes.target,
        data=RowLengths([length] * count, [with_loss] * count, exact=False, where="a forecast", shared_prefix=True),
        device=machine.device,
        compute_dtype=compute_type(settings.train.dtype, device),
        state_dtype=state_dtype,
        process_bytes=resident_bytes() if is_cpu else CUDA_CONTEXT,
        available=memory_of(machine.device),
    )
