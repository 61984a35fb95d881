"""How long the steps of a planned run take: the throughput model on what is known of its data, models and devices."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch

from eagle3cli.backends.capture.memory import TargetShape
from eagle3cli.data.hidden_states.quantize import QUANTIZATIONS, Quantization
from eagle3cli.data.hidden_states.rows import empty_codec
from eagle3cli.models.config import DraftConfig
from eagle3cli.runtime.cpus import available_cpus
from eagle3cli.runtime.units import time_text
from eagle3cli.settings.tables import Settings
from eagle3cli.training.batches import Sampler, balance
from eagle3cli.training.forecast import gpu_time
from eagle3cli.training.forecast.inputs import RunInputs
from eagle3cli.training.forecast.memory import draft_weights
from eagle3cli.training.forecast.throughput import (
    EMA_BYTES,
    GPUS,
    OPTIMISER_BYTES,
    REACHED,
    Cluster,
    Gpu,
    Link,
    Step,
    StepTime,
    draft_flops,
    replica_seconds,
    split_step_time,
    step_time,
)
from eagle3cli.training.forecast.workload import PLANNED_STEPS, training_workload
from eagle3cli.training.parallel import is_sharded
from eagle3cli.training.split import Split, Work, planned_split

PRODUCT = 768
"""Rows and columns of the product that a processor is timed with: 0.9 GFLOP."""
REACHED_ON_CPU = 0.6
"""Share of a large product's speed that training reaches on a processor."""
CPU_MEMORY_BANDWIDTH = 1e10
"""Bytes/s; an order of magnitude, as :data:`LOOPBACK`."""
LOOPBACK = Link(1e9, 1e-4)
"""The way between two processes of one machine."""
ASSUMED_GPU = "H100"
"""The GPU that is planned for where there is none here."""


@dataclass(frozen=True)
class Speed:
    """What a step takes, and on which devices."""

    step: StepTime
    device: str
    world_size: int
    split: Split | None = None
    """Where the target has ranks of its own."""

    def lines(self, steps: int | None) -> list[str]:
        """For people; ``steps``: of the whole run, where they are known."""
        step = self.step
        shares = {name: seconds / step.total for name, seconds in self.parts().items()}
        parts = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share >= 0.005)
        text = f"about {step.total:.2g} s a step, {step.tokens_per_s:,.0f} tokens/s on {self.device} ({parts})"
        if self.world_size > 1:
            text += f"; {step.efficiency:.0%} of what {self.world_size} times one would do"
        if steps:
            text += f"; all steps {time_text(steps * step.total)}, evaluations not counted"
        return [text] if self.split is None else [text, self.split.line()]

    def parts(self) -> dict[str, float]:
        """Seconds by part."""
        return {name: getattr(self.step, name) for name in ("draft", "target", "waiting", "optimiser", "communication")}

    def numbers(self) -> dict[str, Any]:
        """For JSON."""
        step = self.step
        return {
            "seconds": step.total,
            "tokens_per_s": step.tokens_per_s,
            "efficiency": step.efficiency,
            "device": self.device,
            "parts": self.parts(),
            **({} if self.split is None else {"split": self.split.numbers()}),
        }


def forecast_speed(settings: Settings, inputs: RunInputs, world_size: int, order: Sampler) -> Speed:
    """What a step takes where ``world_size`` processes train, and others may hold the target."""
    train = settings.train
    data = inputs.data
    targets = settings.launch.targets if train.mode == "online" else 0
    ranks = world_size + targets
    anchors = sum(data.loss_tokens) * train.anchor_fraction
    if inputs.device == "cpu":
        cluster = replace(_cpu_cluster(inputs, ranks, settings.target.threads), gpus=world_size)
        device = "this processor"
        draft = per_token(inputs.draft, data.tokens, len(data.lengths), anchors, train.ttt_length)
        moved = OPTIMISER_BYTES
    else:
        cluster, device, gpu = _gpu_cluster(ranks)
        cluster = replace(cluster, gpus=world_size)
        draft = cluster.flops * seconds_per_token(settings, inputs, world_size, gpu)
        moved = gpu_time.OPTIMISER_BYTES
    target = 2 * active_weights(inputs.target) * train.live_share if train.mode == "online" else 0
    batches = [order.batch(step) for step in range(min(order.steps_per_epoch, PLANNED_STEPS))]
    even = balance(batches, data.lengths, max(1, world_size // train.context_parallel))
    if not targets and train.context_parallel > settings.target.tp_size:  # the targets of a group read whole rows
        target *= even / balance(batches, data.lengths, max(1, world_size // settings.target.tp_size))
    weights = draft_weights(inputs.draft)
    step = Step(
        tokens=max(1, data.tokens * train.batch_size // max(1, len(data.lengths))),
        weights=weights,
        draft_flops=draft,
        target_share=0.0 if targets else target / (draft + target),
        sharded=is_sharded(train, weights, world_size),
        weight_bytes=inputs.compute_dtype.itemsize,
        optimiser_bytes=moved + EMA_BYTES * (train.ema_decay is not None),
        balance=even,
    )
    if not targets:
        return Speed(step_time(step, cluster), device, world_size)
    sent = state_bytes(inputs, settings.launch.transfer_encoding)
    time = split_step_time(step, cluster, targets, settings.target.tp_size, target, sent)
    drafts_time = step_time(step, cluster).total
    work = Work(replica_seconds(step, cluster, settings.target.tp_size, target, sent), drafts_time * world_size)
    work = replace(work, tp_size=settings.target.tp_size)
    split = planned_split(work, targets, world_size, max(world_size, train.batch_size))
    return Speed(time, device, ranks, split)


def state_bytes(inputs: RunInputs, encoding: str) -> float:
    """Bytes of a token's states on their way, where each of its positions is read."""
    values = inputs.draft.aux_width + inputs.target.hidden
    if encoding == "exact":
        return values * inputs.state_dtype.itemsize
    name: Quantization = next(name for name in QUANTIZATIONS if name == encoding)
    layers = inputs.draft.aux_width // inputs.target.hidden
    codec = empty_codec(name, layers=layers, hidden=inputs.target.hidden)
    return codec.aux.bytes_per_state + codec.last.bytes_per_state


def per_token(draft: DraftConfig, tokens: int, rows: int, loss_tokens: float, ttt_steps: int) -> float:
    """FLOP of the draft for a token of these data: what a processor's time is taken from."""
    head = draft.draft_vocab_size * draft.hidden_size
    fc = draft.aux_width * draft.hidden_size
    embedding = draft.vocab_size * draft.hidden_size if draft.own_embedding else 0
    return draft_flops(
        fc=fc,
        layer=draft_weights(draft) - fc - head - embedding,
        head=head,
        hidden=draft.hidden_size,
        length=seen_length(draft, tokens // max(1, rows)),
        ttt_steps=ttt_steps,
        loss_share=loss_tokens / max(1, tokens),
    )


def seconds_per_token(settings: Settings, inputs: RunInputs, world_size: int, gpu: Gpu) -> float:
    """What a GPU needs of time for the draft, for a token of these data in micro batches as large as the largest."""
    data = inputs.data
    work = training_workload(settings, inputs, world_size)
    share = settings.train.anchor_fraction * sum(data.loss_tokens) / max(1, data.tokens)
    work = replace(work, tokens=max(1, work.tokens), positions=max(1, round(share * work.tokens)))
    keys = min(visible_keys(data.lengths, data.loss_tokens), most_keys(inputs.draft))
    return gpu_time.draft_seconds(work, gpu, keys) / work.tokens


def most_keys(draft: DraftConfig) -> float:
    """Keys that a position sees at most."""
    return math.inf if draft.window is None else draft.window + draft.sinks


def seen_length(draft: DraftConfig, length: int) -> int:
    """Tokens of a sequence in which a position sees on average as many keys as in one of ``length`` by its window."""
    return round(min(length, 2 * most_keys(draft)))


def visible_keys(lengths: Sequence[int], loss_tokens: Sequence[int]) -> float:
    """Keys that a position with loss sees on average, where those positions are the ends of their sequences."""
    seen = sum(n * (length - n / 2) for length, n in zip(lengths, loss_tokens, strict=True))
    return seen / max(1, sum(loss_tokens))


def active_weights(target: TargetShape) -> int:
    """Weights that a token of the target passes; of experts those that it goes to."""
    attention = 2 * target.hidden * (target.hidden + target.key_value)
    return target.layers * (attention + 3 * target.hidden * target.intermediate) + target.vocab * target.hidden


def _gpu_cluster(world_size: int) -> tuple[Cluster, str, Gpu]:
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else ASSUMED_GPU
    name = next((name for name in GPUS if name in here), ASSUMED_GPU)
    gpu = GPUS[name]
    gpus = f"{world_size} {name}s" if world_size > 1 else f"one {name}"
    bandwidth = gpu_time.MEMORY * gpu.memory_bandwidth
    cluster = Cluster(world_size, flops=REACHED * gpu.peak_flops, memory_bandwidth=bandwidth, link=gpu.link)
    return cluster, f"{gpus} by a roofline", gpu


def _cpu_cluster(inputs: RunInputs, world_size: int, threads: int | None) -> Cluster:
    cores = len(available_cpus())
    cores_each = min(threads or max(1, cores // world_size), cores / world_size)
    flops = REACHED_ON_CPU * cores_each * product_flops(inputs.compute_dtype)
    return Cluster(world_size, flops=flops, memory_bandwidth=CPU_MEMORY_BANDWIDTH, link=LOOPBACK)


@cache
def product_flops(dtype: torch.dtype) -> float:
    """FLOP/s of one core in a large product, timed once."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        matrix = torch.ones(PRODUCT, PRODUCT, dtype=dtype)
        times = []
        for _ in range(3):
            start = time.perf_counter()
            matrix @ matrix
            times.append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    return 2 * PRODUCT**3 / min(times)
