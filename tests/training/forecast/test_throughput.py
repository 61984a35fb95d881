"""The model of throughput: limits, monotony, and its formulas against a simulated ring."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.training.forecast.throughput import (
    Cluster,
    Link,
    Step,
    draft_flops,
    replica_seconds,
    split_step_time,
    step_time,
)

LINK = Link(1e9, 1e-5)
CLUSTERS = st.builds(
    Cluster,
    gpus=st.integers(1, 512),
    nodes=st.integers(1, 64),
    flops=st.floats(1e9, 1e15),
    memory_bandwidth=st.floats(1e9, 1e13),
    link=st.builds(Link, st.floats(1e8, 1e12), st.floats(0, 1e-3)),
    network=st.builds(Link, st.floats(1e8, 1e12), st.floats(0, 1e-3)),
)
STEPS = st.builds(
    Step,
    tokens=st.integers(1, 10**7),
    weights=st.integers(1, 10**10),
    draft_flops=st.floats(1e3, 1e12),
    target_share=st.floats(0, 0.95),
    sharded=st.booleans(),
    weight_bytes=st.sampled_from([2, 4]),
    balance=st.floats(0.3, 1.0),
)


@given(STEPS, CLUSTERS)
def test_one_gpu_waits_for_nobody(step: Step, cluster: Cluster) -> None:
    alone = step_time(step, replace(cluster, gpus=1))
    assert (alone.communication, alone.waiting) == (0, 0)
    assert alone.efficiency == pytest.approx(1)


@given(STEPS, CLUSTERS)
def test_parts_add_up_and_nothing_is_won_for_free(step: Step, cluster: Cluster) -> None:
    time = step_time(step, cluster)
    assert time.tokens_per_s == pytest.approx(step.tokens / time.total)
    assert 0 < time.efficiency <= 1 + 1e-12
    if time.draft:
        assert time.target / (time.draft + time.target) == pytest.approx(step.target_share, abs=1e-9)


@given(STEPS, CLUSTERS, st.floats(1, 100))
def test_faster_parts_never_slow_a_step_down(step: Step, cluster: Cluster, factor: float) -> None:
    before = step_time(step, cluster).total
    quicker = Link(cluster.link.bandwidth * factor, cluster.link.latency / factor)
    for better in (
        replace(cluster, flops=cluster.flops * factor),
        replace(cluster, memory_bandwidth=cluster.memory_bandwidth * factor),
        replace(cluster, link=quicker),
        replace(cluster, network=Link(cluster.network.bandwidth * factor, cluster.network.latency / factor)),
    ):
        assert step_time(step, better).total <= before * (1 + 1e-12)
    assert step_time(replace(step, tokens=step.tokens * 2), cluster).total > before
    assert step_time(replace(step, balance=1.0), cluster).total <= before


@given(STEPS, CLUSTERS, st.integers(2, 64))
def test_larger_batches_are_more_efficient(step: Step, cluster: Cluster, factor: int) -> None:
    before = step_time(step, cluster)
    after = step_time(replace(step, tokens=step.tokens * factor), cluster)
    assert after.tokens_per_s >= before.tokens_per_s * (1 - 1e-9)
    sharded = replace(step, sharded=True, balance=1.0)
    larger = replace(sharded, tokens=step.tokens * factor)
    assert step_time(larger, cluster).efficiency >= step_time(sharded, cluster).efficiency - 1e-9


@given(STEPS, CLUSTERS)
def test_with_links_that_cost_nothing_and_even_shares_nothing_is_lost(step: Step, cluster: Cluster) -> None:
    free = Link(float("inf"), 0.0)
    even = replace(step, sharded=True, balance=1.0)
    assert step_time(even, replace(cluster, link=free, network=free)).efficiency == pytest.approx(1)


def ring(count: int, parts: list[float], link: Link, *, rounds: int) -> float:
    """Seconds of a ring: in each round every rank passes one part on, and all wait for the slowest."""
    return sum(max(part / link.bandwidth for part in parts) + link.latency for _ in range(rounds * (count - 1)))


@pytest.mark.parametrize("count", [2, 3, 8, 64])
def test_collectives_cost_what_a_ring_costs(count: int) -> None:
    weights, cluster = 840_000, Cluster(count, link=LINK)
    step = Step(tokens=1000, weights=weights, draft_flops=1e6)
    small = ring(count, [0.0], LINK, rounds=2)
    whole = ring(count, [4 * weights / count] * count, LINK, rounds=2)
    assert step_time(step, cluster).communication == pytest.approx(whole + 2 * small)
    gather = ring(count, [2 * weights / count] * count, LINK, rounds=1)
    scatter = ring(count, [4 * weights / count] * count, LINK, rounds=1)
    shards = step_time(replace(step, sharded=True), cluster).communication
    assert shards == pytest.approx(gather + scatter + 3 * small)


def test_several_nodes_are_as_fast_as_their_network() -> None:
    step, network = Step(tokens=1000, weights=10**8, draft_flops=1e6), Link(1e8, 1e-3)
    near = step_time(step, Cluster(16, 1, link=LINK, network=network))
    far = step_time(step, Cluster(16, 2, link=LINK, network=network))
    assert far.communication > 9 * near.communication
    assert far.draft == near.draft


def test_flops_of_a_draft_by_hand() -> None:
    """SmolLM2's draft: per depth a loss row passes layer and head, 6 FLOP a weight, and the attention's scores."""
    fc, layer, head = 3 * 576 * 576, 3_982_000, 576 * 16_000
    full = draft_flops(fc=fc, layer=layer, head=head, hidden=576, length=1024, ttt_steps=7, loss_share=1.0)
    attention = 2 * 2 * 576 * 1024 / 2 * (1 + 2.5)
    assert full == pytest.approx(6 * fc + 7 * (6 * (layer + head) + attention) + 2 * head)
    half = draft_flops(fc=fc, layer=layer, head=head, hidden=576, length=1024, ttt_steps=7, loss_share=0.5)
    assert half - 6 * fc == pytest.approx((full - 6 * fc) / 2)


@pytest.mark.parametrize("wrong", [{"tokens": 0}, {"weights": 0}, {"target_share": 1.0}])
def test_what_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    step = replace(Step(tokens=1, weights=1, draft_flops=1.0), **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not a step"):
        step_time(step, Cluster(1))


@given(STEPS, CLUSTERS, st.integers(1, 64), st.floats(1e6, 1e15), st.floats(1, 1e6))
def test_a_split_is_as_slow_as_its_slower_side(
    step: Step, cluster: Cluster, targets: int, target_flops: float, state_bytes: float
) -> None:
    draft = step_time(replace(step, target_share=0.0), cluster)
    time = split_step_time(replace(step, target_share=0.0), cluster, targets, 1, target_flops, state_bytes)
    made = replica_seconds(step, cluster, 1, target_flops, state_bytes) / targets
    assert time.total == pytest.approx(max(draft.total, made))
    assert time.target == pytest.approx(max(0.0, made - draft.total), abs=1e-9 * time.total)
    assert 0 < time.efficiency <= 1 + 1e-9
    # What has to travel takes as long as the slowest link lets it.
    slowest = min(cluster.link.bandwidth, cluster.network.bandwidth) if cluster.nodes > 1 else cluster.link.bandwidth
    assert made * targets >= step.tokens * state_bytes / slowest * (1 - 1e-9)
