"""How a pool is doing, in words that fit beside a progress bar: speed, servers, failures, and who holds the work up."""

from __future__ import annotations

import resource
import time
from collections import deque
from dataclasses import dataclass

from eagle3cli.serving.client.pool import Pool, Server

SECONDS = 30.0
"""Speeds are over the last so many seconds."""
BUSY = 0.85
"""A share of one core from which on the client is the limit."""


@dataclass(frozen=True)
class _Moment:
    time: float
    cpu: float
    tokens: tuple[int, ...]


class Monitor:
    """Look at the pool every second or so with :meth:`notes`."""

    def __init__(self, pool: Pool) -> None:
        self.pool = pool
        self._moments: deque[_Moment] = deque([self._moment()])

    def notes(self) -> dict[str, object]:
        """What is shown beside the bar."""
        moment = self._moment()
        while len(self._moments) > 1 and moment.time - self._moments[0].time > SECONDS:
            self._moments.popleft()
        first = self._moments[0]
        self._moments.append(moment)
        seconds = max(1e-9, moment.time - first.time)
        speeds = [(now - before) / seconds for now, before in zip(moment.tokens, first.tokens, strict=True)]
        total = sum(speeds)
        shown = round(total) if total >= 100 else round(total, 1)
        found: dict[str, object] = {"tokens/s": shown, "in flight": self.pool.in_flight}
        if len(speeds) > 1:
            pairs = zip(self.pool.servers, speeds, strict=True)
            found["servers"] = " | ".join(_server(server, speed) for server, speed in pairs)
        if self.pool.failures:
            found["failures"] = " ".join(f"{kind} x{count}" for kind, count in self.pool.failures.most_common(4))
        found["limited by"] = self._limit((moment.cpu - first.cpu) / seconds)
        return found

    def _limit(self, cpu: float) -> str:
        """Who holds the work up: the servers, the client, or the number of requests that it may have open."""
        pool = self.pool
        if all(server.breaker.is_open for server in pool.servers):
            return "the servers (none is up)"
        if cpu > BUSY:
            return f"this client ({100 * cpu:.0f}% of a core): run a second one with --sample-range"
        queued = sum(server.limit.queued for server in pool.servers)
        if queued:
            return f"the servers ({queued} requests wait inside them)"
        if pool.waiting:
            full = pool.in_flight >= pool.concurrency
            return "--max-concurrency" if full else "the servers (they take no more requests)"
        return "--max-concurrency" if pool.in_flight >= pool.concurrency else "the rows that are left"

    def _moment(self) -> _Moment:
        used = resource.getrusage(resource.RUSAGE_SELF)
        tokens = tuple(server.tokens for server in self.pool.servers)
        return _Moment(time.monotonic(), used.ru_utime + used.ru_stime, tokens)


def _server(server: Server, speed: float) -> str:
    if server.breaker.is_open:
        return f"{server.address} down"
    return f"{server.address} {speed:.0f}/s in {server.in_flight} of {server.limit.places}"
