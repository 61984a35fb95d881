"""How long the steps of a planned run take: :func:`throughput` on what is known of its data, models and devices."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from eagle3cli.backends.capture.memory import TargetShape
from eagle3cli.models.config import DraftConfig
from eagle3cli.runtime.cpus import available_cpus
from eagle3cli.runtime.units import time_text
from eagle3cli.settings.tables import Settings
from eagle3cli.training.forecast.inputs import Known
from eagle3cli.training.forecast.memory import draft_weights
from eagle3cli.training.forecast.throughput import (
    GPUS,
    REACHED,
    Cluster,
    Link,
    Throughput,
    Work,
    draft_flops,
    throughput,
)
from eagle3cli.training.forecast.workload import LOOKED_AT, sharded
from eagle3cli.training.sampler import Order
from eagle3cli.training.sharding import balance

PRODUCT = 768
"""Rows and columns of the product that a processor is timed with: 0.9 GFLOP."""
REACHED_ON_CPU = 0.6
"""Share of a large product's speed that training reaches on a processor."""
MEMORY_OF_CPU, LOOPBACK = 1e10, Link(1e9, 1e-4)
"""Bytes/s of a processor's memory, and the way between two processes of one machine: orders of magnitude."""
ASSUMED = "H100"
"""The GPU that is planned for where there is none here."""


@dataclass(frozen=True)
class Speed:
    """What a step takes, and on which devices."""

    step: Throughput
    device: str
    ranks: int

    def lines(self, steps: int | None) -> list[str]:
        """For people; ``steps``: of the whole run, where they are known."""
        shares = {name: value / self.step.step for name, value in self.parts().items()}
        parts = ", ".join(f"{name} {share:.0%}" for name, share in shares.items() if share >= 0.005)
        found = (
            f"about {self.step.step:.2g} s a step, {self.step.tokens_per_s:,.0f} tokens/s on {self.device} ({parts})"
        )
        several = f"; {self.step.efficiency:.0%} of what {self.ranks} times one would do" if self.ranks > 1 else ""
        whole = f"; all steps {time_text(steps * self.step.step)}, evaluations not counted" if steps else ""
        return [found + several + whole]

    def parts(self) -> dict[str, float]:
        """Seconds by part."""
        return {name: getattr(self.step, name) for name in ("draft", "target", "waiting", "optimiser", "communication")}

    def numbers(self) -> dict[str, Any]:
        """For JSON."""
        step = self.step
        told = {"seconds": step.step, "tokens_per_s": step.tokens_per_s, "efficiency": step.efficiency}
        return {**told, "device": self.device, "parts": self.parts()}


def speed_of(settings: Settings, known: Known, ranks: int, order: Order) -> Speed:
    """What a step of ``ranks`` processes takes."""
    train, data = settings.train, known.data
    draft = per_token(
        known.draft, data.tokens, len(data.lengths), sum(data.replies) * train.anchor_fraction, train.ttt_length
    )
    target = 2 * active_weights(known.target) if train.mode == "online" else 0
    batches = [order.batch(step) for step in range(min(order.steps_per_epoch, LOOKED_AT))]
    work = Work(
        tokens=max(1, data.tokens * train.batch_size // max(1, len(data.lengths))),
        weights=draft_weights(known.draft),
        draft_flops=draft,
        target_share=target / (draft + target),
        sharded=sharded(settings, known, ranks),
        weight_bytes=known.compute.itemsize,
        balance=balance(batches, data.lengths, ranks),
    )
    cluster, device = _on_processor(known, ranks, settings.target.threads), "this processor"
    if known.device != "cpu":
        cluster, device = _on_gpus(ranks)
    return Speed(throughput(work, cluster), device, ranks)


def per_token(draft: DraftConfig, tokens: int, rows: int, replies: float, depths: int) -> float:
    """FLOP of the draft for a token of these data."""
    head, fc = draft.draft_vocab_size * draft.hidden_size, len(draft.aux_layers) * draft.target_hidden_size
    fc *= draft.hidden_size
    own = draft.vocab_size * draft.hidden_size if draft.own_embedding else 0
    return draft_flops(
        fc=fc,
        layer=draft_weights(draft) - fc - head - own,
        head=head,
        hidden=draft.hidden_size,
        length=tokens // max(1, rows),
        depths=depths,
        loss_share=replies / max(1, tokens),
    )


def active_weights(target: TargetShape) -> int:
    """Weights that a token of the target passes; of experts those that it goes to."""
    attention = 2 * target.hidden * (target.hidden + target.key_value)
    return target.layers * (attention + 3 * target.hidden * target.intermediate) + target.vocab * target.hidden


def _on_gpus(ranks: int) -> tuple[Cluster, str]:
    here = torch.cuda.get_device_name() if torch.cuda.is_available() else ASSUMED
    name = next((name for name in GPUS if name in here), ASSUMED)
    gpu, several = GPUS[name], f"{ranks} {name}s" if ranks > 1 else f"one {name}"
    cluster = Cluster(ranks, flops=REACHED * gpu.peak_flops, memory_bandwidth=gpu.memory_bandwidth, link=gpu.link)
    return cluster, f"{several} at {REACHED:.0%} of its peak"


def _on_processor(known: Known, ranks: int, threads: int | None) -> Cluster:
    cores = len(available_cpus())
    own = min(threads or max(1, cores // ranks), cores / ranks)
    flops = REACHED_ON_CPU * own * product_flops(known.compute)
    return Cluster(ranks, flops=flops, memory_bandwidth=MEMORY_OF_CPU, link=LOOPBACK)


def product_flops(dtype: torch.dtype) -> float:
    """FLOP/s of one core in a large product, timed."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        left, times = torch.ones(PRODUCT, PRODUCT, dtype=dtype), []
        for _ in range(3):
            began = time.perf_counter()
            left @ left
            times.append(time.perf_counter() - began)
    finally:
        torch.set_num_threads(before)
    return 2 * PRODUCT**3 / min(times)
