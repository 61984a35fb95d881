"""How long a training step takes on any number of GPUs: one model, with nothing measured in it but its inputs.

Its parts, for G GPUs, N tokens a step, P trained weights and links of B bytes/s (one direction) and latency a:

    draft         N/G * F / R             F FLOP a token (:func:`draft_flops`), R FLOP/s that a GPU reaches
    target        draft * s / (1 - s)     s: share of the target's forward in the compute; 0 offline
    waiting       (draft + target) * (1/b - 1)              b: balance, mean tokens of a rank by those of the busiest
    optimiser     28 P / M, of shards 28 P/G / M            M bytes/s of memory: gradient, master and moments are read,
                                                            master and moments written, 4 bytes each (more on a GPU:
                                                            ``gpu_time.OPTIMISER_BYTES``)
    communication replicated: all-reduce of 4 P bytes       2 (G-1)/G * 4P/B + 2 (G-1) a
                  sharded: all-gather of the weights        (G-1)/G * wP/B + (G-1) a     w: bytes of a computing weight
                  and reduce-scatter of fp32 gradients      (G-1)/G * 4P/B + (G-1) a
                  and small sums (counts, time, norm)       2 (G-1) a each

The collectives are those of a ring, which is optimal in bytes: Patarasuk and Yuan, "Bandwidth optimal all-reduce
algorithms for clusters of workstations", J. Parallel Distrib. Comput. 69 (2009); their costs as in Thakur, Rabenseifner
and Gropp, "Optimization of collective communication operations in MPICH", Int. J. High Perf. Comput. Appl. 19 (2005).
A ring is as fast as its slowest link, so over several nodes B and a are those of the network. Nothing overlaps: see
``training/parallel.py``. Weights are gathered once a step, not once a micro batch.

With a target on T GPUs of its own, in replicas of t, the G others only train, and both sides work at once:

    step          max(draft's parts as above with s = 0, N * max(f / (t R), z / B) * t / T)
                  f: FLOP of the target's forward a token; z: bytes of a token's states, sent while the next pass runs
"""

from __future__ import annotations

from dataclasses import dataclass, replace

GRADIENT_BYTES = 4
OPTIMISER_BYTES = 28
EMA_BYTES = 12
"""An average of the weights besides: it and the weights are read, it is written."""
REACHED = 0.4
"""Share of a GPU's peak FLOP/s that training is assumed to reach where nobody has measured it."""


@dataclass(frozen=True)
class Link:
    """A connection between two GPUs, as one of them sees it."""

    bandwidth: float
    """Bytes/s in one direction."""
    latency: float
    """Seconds."""


@dataclass(frozen=True)
class Gpu:
    """What a device can do, from its maker's data sheet; bf16 without sparsity."""

    peak_flops: float
    memory_bandwidth: float
    """Bytes/s."""
    link: Link
    """To the others of its node."""


INFINIBAND = Link(50e9, 5e-6)
"""One 400 Gb/s port for every GPU, as in the makers' reference systems."""
GPUS = {
    "A100": Gpu(312e12, 2.0e12, Link(300e9, 3e-6)),
    "H100": Gpu(989e12, 3.35e12, Link(450e9, 3e-6)),
    "H200": Gpu(989e12, 4.8e12, Link(450e9, 3e-6)),
    "B200": Gpu(2250e12, 8.0e12, Link(900e9, 3e-6)),
}


@dataclass(frozen=True)
class Cluster:
    """The devices that share the step."""

    gpus: int
    nodes: int = 1
    flops: float = REACHED * GPUS["H100"].peak_flops
    """FLOP/s that one GPU reaches in training."""
    memory_bandwidth: float = GPUS["H100"].memory_bandwidth
    link: Link = GPUS["H100"].link
    network: Link = INFINIBAND


@dataclass(frozen=True)
class Step:
    """One optimiser step."""

    tokens: int
    """Of the whole batch, over all GPUs."""
    weights: int
    """Trained ones."""
    draft_flops: float
    """FLOP of the draft's forward and backward for a token."""
    target_share: float = 0.0
    """Share of the compute that is the live target's forward pass."""
    sharded: bool = False
    weight_bytes: int = 2
    """Of a weight as the draft computes with it."""
    optimiser_bytes: int = OPTIMISER_BYTES
    """Bytes that the update of a weight moves."""
    balance: float = 1.0
    """Mean tokens of a rank by those of the busiest (:func:`eagle3cli.training.batches.balance`)."""


@dataclass(frozen=True)
class StepTime:
    """A step's parts in seconds, and what they come to."""

    draft: float
    target: float
    waiting: float
    optimiser: float
    communication: float
    tokens_per_s: float
    efficiency: float
    """Time of one GPU for the same batch, by the time of all GPUs together."""

    @property
    def total(self) -> float:
        """Seconds a step."""
        return self.draft + self.target + self.waiting + self.optimiser + self.communication


def step_time(step: Step, cluster: Cluster) -> StepTime:
    """What a step takes; the module says by which formulas. Raises ValueError for what cannot be."""
    if min(step.tokens, step.weights, cluster.gpus, cluster.nodes) < 1 or not 0 <= step.target_share < 1:
        raise ValueError(f"not a step: {step}, {cluster}")
    gpus = cluster.gpus
    draft = step.tokens / gpus * step.draft_flops / cluster.flops
    target = draft * step.target_share / (1 - step.target_share)
    balance = step.balance if gpus > 1 else 1.0
    updated = step.weights / gpus if step.sharded else step.weights
    optimiser = step.optimiser_bytes * updated / cluster.memory_bandwidth
    waiting = (draft + target) * (1 / balance - 1)
    communication = _communication(step, cluster)
    total = draft + target + waiting + optimiser + communication
    on_one = gpus * (draft + target) + step.optimiser_bytes * step.weights / cluster.memory_bandwidth
    return StepTime(draft, target, waiting, optimiser, communication, step.tokens / total, on_one / (gpus * total))


def replica_seconds(step: Step, cluster: Cluster, tp_size: int, target_flops: float, state_bytes: float) -> float:
    """What a replica of a target with GPUs of its own takes for the batch of a step: its passes, or to send the states
    where that is slower."""
    network = min(cluster.link.bandwidth, cluster.network.bandwidth) if cluster.nodes > 1 else cluster.link.bandwidth
    return step.tokens * max(target_flops / (cluster.flops * tp_size), state_bytes / network)


def split_step_time(
    step: Step, cluster: Cluster, targets: int, tp_size: int, target_flops: float, state_bytes: float
) -> StepTime:
    """What a step takes where ``targets`` GPUs besides those of ``cluster`` hold the target; ``target`` of its parts is
    what the draft waits for it."""
    draft = step_time(step, cluster)
    made = replica_seconds(step, cluster, tp_size, target_flops, state_bytes) * tp_size / targets
    total = max(draft.total, made)
    alone = step.tokens * (step.draft_flops + target_flops) / cluster.flops
    alone += step.optimiser_bytes * step.weights / cluster.memory_bandwidth
    efficiency = alone / ((cluster.gpus + targets) * total)
    return replace(draft, target=total - draft.total, tokens_per_s=step.tokens / total, efficiency=efficiency)


def _communication(step: Step, cluster: Cluster) -> float:
    others = cluster.gpus - 1
    slowest = cluster.link
    if cluster.nodes > 1:
        network = cluster.network
        slowest = Link(min(slowest.bandwidth, network.bandwidth), max(slowest.latency, network.latency))
    part = others / cluster.gpus / slowest.bandwidth
    gradients = step.weights * GRADIENT_BYTES
    small_sums = 2 * others * slowest.latency * (3 if step.sharded else 2)
    if step.sharded:
        return part * (step.weights * step.weight_bytes + gradients) + 2 * others * slowest.latency + small_sums
    return 2 * part * gradients + 2 * others * slowest.latency + small_sums


def draft_flops(
    *, fc: int, layer: int, head: int, hidden: int, length: int, ttt_steps: int, loss_share: float = 0.5
) -> float:
    """FLOP of a draft's forward and backward passes for one token.

    ``fc``, ``layer`` and ``head`` are weights, ``length`` the tokens of a sequence, ``loss_share`` the share of tokens
    that carry loss. A product with W weights takes 2 W FLOP a row forward and 4 W backward; causal attention takes
    2 * hidden * length a row forward and 2.5 times that backward. Every token goes through ``fc``; those with loss go
    through layer, attention and head once a depth, and once through the teacher's head, forward only. (Left out: keys
    and values of the tokens without loss.)
    """
    attention = 3.5 * 2 * hidden * length
    return 6 * fc + loss_share * (ttt_steps * (6 * (layer + head) + attention) + 2 * head)
