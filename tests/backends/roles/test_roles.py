"""The two sides of a job whose target has ranks of its own, in threads: who runs what, what travels, how much waits."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

import numpy as np
import pytest
import torch
import torch.distributed as dist

from eagle3cli.backends.batches.online import OnlineSource
from eagle3cli.backends.roles.message import Shape
from eagle3cli.backends.roles.queue import PassQueue, Request, Usage
from eagle3cli.backends.roles.serve import UNSENT, Replica
from eagle3cli.backends.roles.source import AHEAD, AskedAhead, RemoteSource, TargetRanks
from eagle3cli.backends.target.logits import Head, make_head
from eagle3cli.backends.target.target import States, Tokens
from eagle3cli.data.tokens.rows import TokenRow, TokenRows
from eagle3cli.runtime.distributed import Ranks
from eagle3cli.runtime.processes.job import Job
from eagle3cli.runtime.stop import Stop

HIDDEN = 64
LAYERS = 3
VOCAB = 50
ROWS = 24
CPU = torch.device("cpu")


@dataclass
class SlowTarget:
    """States that depend on the tokens alone, after a while."""

    seconds: float = 0.0
    path: str = "target"
    aux_layers: tuple[int, ...] = (0, 1, 2)
    device: torch.device = CPU
    ran: list[tuple[int, ...]] = field(default_factory=list)
    waits_for: threading.Event | None = None
    """Set by another target's pass, before which this one ends none."""
    sets: threading.Event | None = None

    def __post_init__(self) -> None:
        generator = torch.Generator().manual_seed(3)
        self.embedding_VH = torch.randn(VOCAB, HIDDEN, generator=generator)
        self.head: Head = make_head({}, self.embedding_VH, None)

    def capture(self, sequences: Sequence[Tokens]) -> States:
        """The embeddings, summed up from the beginning of each row."""
        time.sleep(self.seconds)
        if self.waits_for is not None:
            assert self.waits_for.wait(60)
        if self.sets is not None:
            self.sets.set()
        self.ran.append(tuple(int(ids[0]) for ids in sequences))
        states = [self.embedding_VH[torch.tensor(ids, dtype=torch.long)].cumsum(0) for ids in sequences]
        return [(torch.cat([last * n for n in range(1, LAYERS + 1)], -1), last) for last in states]


def some_rows() -> TokenRows:
    """Rows whose first token is their number; one holds no reply, one nothing but."""
    rows = []
    for number in range(ROWS):
        length = 6 + number % 5
        ids = np.array([number, *((number * 7 + n) % VOCAB for n in range(1, length))], dtype=np.int32)
        mask = np.array([number == 4 or (n > 2 and number != 3) for n in range(length)], dtype=np.uint8)
        rows.append(TokenRow(str(number), ids, mask))
    return TokenRows.of(rows)


@contextmanager
def job(targets: Sequence[SlowTarget], encoding: str = "exact") -> Iterator[tuple[TargetRanks, list[Replica]]]:
    """Replicas at work in threads, and the way of one draft rank to them."""
    size = len(targets) + 1
    shape = Shape(LAYERS, HIDDEN, torch.float32, encoding)
    master = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def rank(number: int) -> Ranks:
        store = dist.TCPStore("127.0.0.1", master.port, is_master=False)
        gloo = dist.ProcessGroupGloo(dist.PrefixStore("gloo", store), number, size, timedelta(seconds=60))
        own = number if number < len(targets) else 0
        return Ranks(own, 1, job=Job(number, size, len(targets), dist.PrefixStore("job", store), {"cpu": gloo}))

    with ThreadPoolExecutor(size) as pool:
        ranks = list(pool.map(rank, range(size)))
        replicas = [
            Replica(target, own, shape, number, Stop())
            for number, (target, own) in enumerate(zip(targets, ranks[:-1], strict=True))
        ]
        served = [pool.submit(replica.serve) for replica in replicas]
        side = TargetRanks(ranks[-1], shape, CPU, len(targets))
        try:
            yield side, replicas
        finally:
            side.finish()
            for future in served:
                future.result(timeout=60)


BATCHES = [[number, (number + 5) % ROWS] for number in range(ROWS)]


def test_batches_are_those_of_a_target_at_hand() -> None:
    """Where some loss reads; in the order of the sampler, though one replica has nothing before the other has."""
    rows = some_rows()
    quick = threading.Event()
    expected = OnlineSource(SlowTarget(), rows)  # type: ignore[arg-type]
    with job([SlowTarget(waits_for=quick), SlowTarget(sets=quick)]) as (side, replicas):
        side.begin(rows)
        ahead = AskedAhead(RemoteSource(side, rows), BATCHES)
        for numbers in BATCHES:
            batch = ahead.batch(numbers)
            beside = expected.batch(numbers)
            read = batch.top_N >= 0
            assert batch.rows == tuple(numbers)
            assert torch.equal(batch.top_N, beside.top_N)
            assert torch.equal(batch.token_ids_N, beside.token_ids_N)
            assert torch.equal(batch.last_NH[read], beside.last_NH[read])
            with_aux = batch.aux_NC.any(1)
            assert torch.equal(batch.aux_NC[with_aux], beside.aux_NC[with_aux])
            assert not batch.last_NH[~read].any()
    assert sum(replica.usage.passes for replica in replicas) == len(BATCHES)  # each once
    assert sum(replica.usage.tokens for replica in replicas) == sum(rows.lengths[n] for batch in BATCHES for n in batch)


@pytest.mark.parametrize(("encoding", "error"), [("bf16", 0.01), ("fp8", 0.05), ("int8", 0.03), ("int4", 0.3)])
def test_states_may_travel_encoded(encoding: str, error: float) -> None:
    rows = some_rows()
    expected = OnlineSource(SlowTarget(), rows).batch([7, 8])  # type: ignore[arg-type]
    with job([SlowTarget()], encoding) as (side, _):
        side.begin(rows)
        batch = RemoteSource(side, rows).batch([7, 8])
    read = batch.top_N >= 0
    assert torch.equal(batch.top_N, expected.top_N)  # found before the encoding
    distance = (batch.last_NH[read] - expected.last_NH[read]).norm() / expected.last_NH[read].norm()
    assert 0 < distance < error


def test_other_batches_come_between_those_that_are_ahead() -> None:
    """An evaluation between two steps, and rows that a run asks for once more."""
    rows = some_rows()
    with job([SlowTarget()]) as (side, _):
        side.begin(rows)
        ahead = AskedAhead(RemoteSource(side, rows), BATCHES[:3])
        for numbers in (BATCHES[0], [9], BATCHES[0], BATCHES[1], [9], BATCHES[2], BATCHES[2]):
            assert ahead.batch(numbers).rows == tuple(numbers)


@pytest.mark.parametrize("slow", ["draft", "target"])
def test_what_waits_is_bounded_whoever_is_slow(slow: str) -> None:
    """Ten times slower than the other side: no more batches here, nor at a replica, than the two bounds say."""
    rows = some_rows()
    seconds = {"draft": 0.002, "target": 0.02}[slow]
    pause = 0.022 - seconds
    asked = []
    with job([SlowTarget(seconds)]) as (side, replicas):
        side.begin(rows)
        ahead = AskedAhead(RemoteSource(side, rows), BATCHES)
        largest = 0
        for number, numbers in enumerate(BATCHES):
            batch = ahead.batch(numbers)
            time.sleep(pause)
            asked.append(side.asked - number - 1)
            states = (batch.aux_NC, batch.last_NH, batch.top_N)
            largest = max(largest, sum(tensor.nbytes for tensor in states))
            assert replicas[0].most_unsent <= UNSENT + 1
    assert max(asked) == AHEAD
    assert side.most_waiting_bytes <= AHEAD * largest
    usage = replicas[0].usage
    assert usage.passes == len(BATCHES)
    assert usage.busy >= usage.passes * seconds


def test_a_signal_at_the_target_reaches_the_draft() -> None:
    rows = some_rows()
    with job([SlowTarget()]) as (side, replicas):
        side.stop = Stop()
        side.begin(rows)
        replicas[0].stop.requested = 15
        RemoteSource(side, rows).batch([1])
        assert side.stop.requested == 15


def test_requests_and_usage_go_through_the_store() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    queue = PassQueue(store)
    rows = some_rows()
    queue.ask(Request.of(2, 5, [rows[3], rows[4]], judge=True))
    queue.end(1)
    request = queue.claim()
    assert request is not None
    assert (request.draft, request.number, request.judge, request.fit) == (2, 5, True, False)
    for row, ids, mask in zip((rows[3], rows[4]), request.token_ids, request.loss_masks, strict=True):
        assert list(ids) == list(row.token_ids)
        assert list(mask) == list(row.loss_mask)
    assert queue.claim() is None
    queue.report_usage(1, Usage(passes=3, busy=1.5))
    assert queue.usage(2) == [Usage(), Usage(passes=3, busy=1.5)]
