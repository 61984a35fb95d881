"""How a pool is doing, in words that fit beside a progress bar: speed, servers, failures, and who holds the work up."""

from __future__ import annotations

import resource
import time
from collections import deque
from dataclasses import dataclass

from eagle3cli.serving.client.pool import Endpoint, Pool

SECONDS = 30.0
"""Speeds are over the last so many seconds."""
BUSY = 0.85
"""A share of one core from which on the client is the limit."""


@dataclass(frozen=True)
class _Snapshot:
    time: float
    cpu: float
    tokens: tuple[int, ...]


class Monitor:
    """Look at the pool every second or so with :meth:`notes`."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._snapshots: deque[_Snapshot] = deque([self._snapshot()])

    def notes(self) -> dict[str, object]:
        """What is shown beside the bar."""
        snapshot = self._snapshot()
        while len(self._snapshots) > 1 and snapshot.time - self._snapshots[0].time > SECONDS:
            self._snapshots.popleft()
        first = self._snapshots[0]
        self._snapshots.append(snapshot)
        seconds = max(1e-9, snapshot.time - first.time)
        speeds = [(now - before) / seconds for now, before in zip(snapshot.tokens, first.tokens, strict=True)]
        total = sum(speeds)
        shown = round(total) if total >= 100 else round(total, 1)
        notes: dict[str, object] = {"tokens/s": shown, "in flight": self.pool.in_flight}
        if len(speeds) > 1:
            pairs = zip(self.pool.endpoints, speeds, strict=True)
            notes["servers"] = " | ".join(_describe(endpoint, speed) for endpoint, speed in pairs)
        if self.pool.errors:
            notes["failures"] = " ".join(f"{kind} x{count}" for kind, count in self.pool.errors.most_common(4))
        notes["limited by"] = self._limit((snapshot.cpu - first.cpu) / seconds)
        return notes

    def _limit(self, cpu: float) -> str:
        """Who holds the work up: the servers, the client, or the number of requests that it may have open."""
        pool = self.pool
        if all(endpoint.breaker.is_open for endpoint in pool.endpoints):
            return "the servers (none is up)"
        if cpu > BUSY:
            return f"this client ({100 * cpu:.0f}% of a core): run a second one with --sample-range"
        queued = sum(endpoint.limit.queued for endpoint in pool.endpoints)
        if queued:
            return f"the servers ({queued} requests wait inside them)"
        if pool.in_flight >= pool.concurrency:
            return "--max-concurrency"
        return "the servers (they take no more requests)" if pool.waiting else "the rows that are left"

    def _snapshot(self) -> _Snapshot:
        used = resource.getrusage(resource.RUSAGE_SELF)
        tokens = tuple(endpoint.tokens for endpoint in self.pool.endpoints)
        return _Snapshot(time.monotonic(), used.ru_utime + used.ru_stime, tokens)


def _describe(endpoint: Endpoint, speed: float) -> str:
    if endpoint.breaker.is_open:
        return f"{endpoint.address} down"
    return f"{endpoint.address} {speed:.0f}/s in {endpoint.in_flight} of {endpoint.limit.places}"
