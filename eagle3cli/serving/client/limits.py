"""How much a server may be asked at once, and whether it is asked at all: plain state without clock or network.

All times are seconds of one monotonic clock that the caller reads.
"""

from __future__ import annotations

from dataclasses import dataclass, field

SHRINK = 0.7
"""What is left of the limit when a server says that it is too much."""
SPARE = 0.25
"""Requests that may wait inside a server, as a share of those it runs: enough to keep it busy between two answers."""


@dataclass
class Limit:
    """Requests that one server may hold: doubles while nothing objects, then grows by one a round, shrinks by a factor.

    A round is the time in which as many answers come as the limit allows.
    """

    most: int
    now: float = 16.0
    is_cautious: bool = False
    """A server has objected once: the limit grows slowly."""
    queued: int = 0
    """Requests that waited inside the server when it last told."""
    _shrunk: float = field(default=float("-inf"), repr=False)

    def __post_init__(self) -> None:
        self.now = min(self.now, self.most)

    @property
    def places(self) -> int:
        """The limit as a whole number, at least 1."""
        return max(1, int(self.now))

    def record_answer(self, in_flight: int) -> None:
        """An answer came while ``in_flight`` requests, it among them, were in the server."""
        if in_flight < self.places or self.queued:
            return  # the limit holds nothing back, or the server has a queue already
        self.now = min(self.most, self.now + (1 / self.now if self.is_cautious else 1))

    def record_overload(self, sent: float, now: float) -> None:
        """The server refused a request of time ``sent`` because there are too many; a round shrinks the limit once."""
        self.is_cautious = True
        if sent >= self._shrunk:
            self.now = max(1.0, self.now * SHRINK)
            self._shrunk = now

    def record_load(self, running: int, waiting: int) -> None:
        """The server says how many requests it runs and how many wait inside it."""
        self.queued = waiting if waiting > max(2.0, SPARE * running) else 0
        if self.queued:
            self.is_cautious = True
            self.now = max(1.0, min(self.now, running * (1 + SPARE) + 2))
        elif waiting == 0 and running >= self.places and not self.is_cautious:
            self.now = min(self.most, self.now * 1.5)

    def restart(self) -> None:
        """The server has just come back."""
        self.now = float(min(self.most, 8))
        self.is_cautious = False
        self.queued = 0


@dataclass
class Breaker:
    """Whether a server is asked. It opens when requests keep failing, and a health check closes it again."""

    failures_allowed: int = 5
    first_wait: float = 1.0
    longest_wait: float = 15.0
    is_open: bool = False
    reason: str = ""
    next_check: float = 0.0
    _failures: int = 0
    _wait: float = 0.0

    def record_success(self) -> None:
        """A request was answered."""
        self._failures = 0

    def record_failure(self, reason: str, now: float, *, is_dead: bool = False) -> None:
        """A request failed for a reason of the server's; ``is_dead`` opens at once."""
        self._failures += 1
        if not self.is_open and (is_dead or self._failures >= self.failures_allowed):
            self.is_open = True
            self.reason = reason
            self._wait = self.first_wait
            self.next_check = now + self._wait

    def record_failed_check(self, reason: str, now: float) -> None:
        """A health check failed: the next one comes later."""
        self.reason = reason
        self._wait = min(self.longest_wait, self._wait * 2)
        self.next_check = now + self._wait

    def close(self) -> None:
        """A health check succeeded."""
        self.is_open = False
        self.reason = ""
        self._failures = 0
