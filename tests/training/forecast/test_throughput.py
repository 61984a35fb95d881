"""The model of throughput: limits, monotony, and its formulas against a simulated ring."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.training.forecast.throughput import Cluster, Link, Work, draft_flops, throughput

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
WORK = st.builds(
    Work,
    tokens=st.integers(1, 10**7),
    weights=st.integers(1, 10**10),
    draft_flops=st.floats(1e3, 1e12),
    target_share=st.floats(0, 0.95),
    sharded=st.booleans(),
    weight_bytes=st.sampled_from([2, 4]),
    balance=st.floats(0.3, 1.0),
)


@given(WORK, CLUSTERS)
def test_one_gpu_waits_for_nobody(work: Work, cluster: Cluster) -> None:
    alone = throughput(work, replace(cluster, gpus=1))
    assert (alone.communication, alone.waiting) == (0, 0)
    assert alone.efficiency == pytest.approx(1)


@given(WORK, CLUSTERS)
def test_parts_add_up_and_nothing_is_won_for_free(work: Work, cluster: Cluster) -> None:
    found = throughput(work, cluster)
    assert found.tokens_per_s == pytest.approx(work.tokens / found.step)
    assert 0 < found.efficiency <= 1 + 1e-12
    if found.draft:
        assert found.target / (found.draft + found.target) == pytest.approx(work.target_share, abs=1e-9)


@given(WORK, CLUSTERS, st.floats(1, 100))
def test_faster_parts_never_slow_a_step_down(work: Work, cluster: Cluster, factor: float) -> None:
    before = throughput(work, cluster).step
    quicker = Link(cluster.link.bandwidth * factor, cluster.link.latency / factor)
    for better in (
        replace(cluster, flops=cluster.flops * factor),
        replace(cluster, memory_bandwidth=cluster.memory_bandwidth * factor),
        replace(cluster, link=quicker),
        replace(cluster, network=Link(cluster.network.bandwidth * factor, cluster.network.latency / factor)),
    ):
        assert throughput(work, better).step <= before * (1 + 1e-12)
    assert throughput(replace(work, tokens=work.tokens * 2), cluster).step > before
    assert throughput(replace(work, balance=1.0), cluster).step <= before


@given(WORK, CLUSTERS, st.integers(2, 64))
def test_larger_batches_are_more_efficient(work: Work, cluster: Cluster, factor: int) -> None:
    before = throughput(work, cluster)
    after = throughput(replace(work, tokens=work.tokens * factor), cluster)
    assert after.tokens_per_s >= before.tokens_per_s * (1 - 1e-9)
    sharded = replace(work, sharded=True, balance=1.0)
    larger = replace(sharded, tokens=work.tokens * factor)
    assert throughput(larger, cluster).efficiency >= throughput(sharded, cluster).efficiency - 1e-9


@given(WORK, CLUSTERS)
def test_with_links_that_cost_nothing_and_even_shares_nothing_is_lost(work: Work, cluster: Cluster) -> None:
    free = Link(float("inf"), 0.0)
    even = replace(work, sharded=True, balance=1.0)
    assert throughput(even, replace(cluster, link=free, network=free)).efficiency == pytest.approx(1)


def ring(count: int, parts: list[float], link: Link, *, rounds: int) -> float:
    """Seconds of a ring: in each round every rank passes one part on, and all wait for the slowest."""
    return sum(max(part / link.bandwidth for part in parts) + link.latency for _ in range(rounds * (count - 1)))


@pytest.mark.parametrize("count", [2, 3, 8, 64])
def test_collectives_cost_what_a_ring_costs(count: int) -> None:
    weights, cluster = 840_000, Cluster(count, link=LINK)
    work = Work(tokens=1000, weights=weights, draft_flops=1e6)
    small = ring(count, [0.0], LINK, rounds=2)
    whole = ring(count, [4 * weights / count] * count, LINK, rounds=2)
    assert throughput(work, cluster).communication == pytest.approx(whole + 2 * small)
    gather = ring(count, [2 * weights / count] * count, LINK, rounds=1)
    scatter = ring(count, [4 * weights / count] * count, LINK, rounds=1)
    shards = throughput(replace(work, sharded=True), cluster).communication
    assert shards == pytest.approx(gather + scatter + 3 * small)


def test_several_nodes_are_as_fast_as_their_network() -> None:
    work, network = Work(tokens=1000, weights=10**8, draft_flops=1e6), Link(1e8, 1e-3)
    near = throughput(work, Cluster(16, 1, link=LINK, network=network))
    far = throughput(work, Cluster(16, 2, link=LINK, network=network))
    assert far.communication > 9 * near.communication
    assert far.draft == near.draft


def test_flops_of_a_draft_by_hand() -> None:
    """SmolLM2's draft: per depth a loss row passes layer and head, 6 FLOP a weight, and the attention's scores."""
    fc, layer, head = 3 * 576 * 576, 3_982_000, 576 * 16_000
    found = draft_flops(fc=fc, layer=layer, head=head, hidden=576, length=1024, depths=7, loss_share=1.0)
    attention = 2 * 2 * 576 * 1024 / 2 * (1 + 2.5)
    assert found == pytest.approx(6 * fc + 7 * (6 * (layer + head) + attention) + 2 * head)
    half = draft_flops(fc=fc, layer=layer, head=head, hidden=576, length=1024, depths=7, loss_share=0.5)
    assert half - 6 * fc == pytest.approx((found - 6 * fc) / 2)


@pytest.mark.parametrize("wrong", [{"tokens": 0}, {"weights": 0}, {"target_share": 1.0}])
def test_what_cannot_be_is_refused(wrong: dict[str, float]) -> None:
    work = replace(Work(tokens=1, weights=1, draft_flops=1.0), **wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="not a step"):
        throughput(work, Cluster(1))
