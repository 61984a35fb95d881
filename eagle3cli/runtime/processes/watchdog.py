"""Which of the ranks is late: each tells the others that it lives, where it is, and whether it waits for them."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

PAUSE = 1.0
"""Seconds between two heartbeats, at most."""
WARN_AFTER = 0.25
"""Share of the time-out after which a late rank is named."""


@dataclass
class Heartbeat:
    """What one rank says."""

    alive: int = 0
    moved: int = 0
    waiting: bool = False
    place: str = ""
    role: str = ""
    """What the rank is there for, where not all do the same."""
    host: str = field(default_factory=socket.gethostname)
    process: int = field(default_factory=os.getpid)


class Watchdog:
    """A thread that puts this rank's heartbeat into the store of the process group and reads the others'.

    ``on_late`` is called once, from the thread, with a rank's last heartbeat and a message, when it has been silent
    for ``timeout`` seconds, or has not moved for as long inside the training loop while others wait for it; with no
    heartbeat when all have waited for as long, which no rank can end. ``warn`` gets a message earlier.
    """

    def __init__(
        self,
        store: Any,
        rank: int,
        world_size: int,
        timeout: float,
        on_late: Callable[[Heartbeat | None, str], None],
        warn: Callable[[str], None],
        role: str = "",
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.rank = rank
        self.timeout = timeout
        self.on_late = on_late
        self.warn = warn
        self.warned = set[int]()
        self.own = Heartbeat()
        self._clock = clock
        now = clock()
        self.own_latest = (0, now)
        """How far this rank had moved when it was last looked at, and since when it has been there."""
        self.latest = {other: (Heartbeat(), now, now) for other in range(world_size) if other != rank}
        """The other ranks' last heartbeats, and when they were last alive and last moved."""
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True, name="watchdog")

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within the block this rank does nothing but wait for the others; a block may stand within another."""
        before = self.own.waiting
        self.own.waiting = True
        self.own.moved += 1
        try:
            yield
        finally:
            self.own.waiting = before
            self.own.moved += 1

    def at(self, place: str) -> None:
        """Say where in the training loop this rank is; an empty text is outside of it."""
        self.own.place = place
        self.own.moved += 1

    def place_of(self, rank: int) -> str:
        """Where in its work another rank was last heard of."""
        return self.latest[rank][0].place

    def _run(self) -> None:
        # At once for the first time: of a rank that never said anything nobody can say that it is late.
        while not self.ended.wait(min(PAUSE, self.timeout / 10) if self.own.alive else 0):
            if not self.look():
                return

    def look(self) -> bool:
        """Say that this rank lives, and judge what the others have said; whether to go on."""
        self.own.alive += 1
        try:
            self.store.set(f"beat/{self.rank}", json.dumps(vars(self.own)))
            heartbeats = {rank: self._read(rank) for rank in self.latest}
        except RuntimeError:  # the store has gone: so has the run
            return False
        known = {rank: beat for rank, beat in heartbeats.items() if beat is not None}
        late = self._find_late(known) or self._find_stuck(known)
        if late is None or self.ended.is_set():
            return True
        self.on_late(*late)
        return False

    def _read(self, rank: int) -> Heartbeat | None:
        key = f"beat/{rank}"
        return Heartbeat(**json.loads(self.store.get(key))) if self.store.check([key]) else None

    def _find_late(self, heartbeats: dict[int, Heartbeat]) -> tuple[Heartbeat | None, str] | None:
        now = self._clock()
        somebody_waits = self.own.waiting or any(heartbeat.waiting for heartbeat in heartbeats.values())
        for rank, heartbeat in heartbeats.items():
            before, alive_at, moved_at = self.latest[rank]
            alive_at = now if heartbeat.alive != before.alive else alive_at
            moved_at = now if heartbeat.moved != before.moved else moved_at
            self.latest[rank] = (heartbeat, alive_at, moved_at)
            stuck = heartbeat.place and not heartbeat.waiting and somebody_waits
            since = moved_at if stuck else alive_at
            reason = "does not answer" if since == alive_at else f"has not moved on from {heartbeat.place}"
            idle = now - since
            who = f"{heartbeat.role}, {heartbeat.host}" if heartbeat.role else heartbeat.host
            message = f"rank {rank} ({who}, process {heartbeat.process}) {reason} for {idle:.0f} s"
            if heartbeat.place and since == alive_at:
                message += f", last heard of in {heartbeat.place}"
            if idle > self.timeout:
                return heartbeat, message
            if idle > self.timeout * WARN_AFTER and rank not in self.warned:
                self.warned.add(rank)
                self.warn(f"{message}; the others wait")
            elif idle < self.timeout * WARN_AFTER:
                self.warned.discard(rank)
        return None

    def _find_stuck(self, heartbeats: dict[int, Heartbeat]) -> tuple[Heartbeat | None, str] | None:
        """Whether all ranks live and wait, and none has moved for the time-out: the message between them is stuck."""
        now = self._clock()
        moved, since = self.own_latest
        if moved != self.own.moved:
            since = now
            self.own_latest = (self.own.moved, now)
        everyone = {self.rank: self.own, **heartbeats}
        if len(everyone) <= len(self.latest) or not all(heartbeat.waiting for heartbeat in everyone.values()):
            return None
        answered = min(self.latest[rank][1] for rank in heartbeats)
        since = max(since, *(self.latest[rank][2] for rank in heartbeats))
        if now - since <= self.timeout or now - answered > self.timeout * WARN_AFTER:
            return None
        places = ", ".join(
            f"rank {rank}{_as(beat)} in {beat.place or 'its start'}" for rank, beat in sorted(everyone.items())
        )
        return None, f"all {len(everyone)} ranks have waited for each other for {now - since:.0f} s: {places}"


def _as(heartbeat: Heartbeat) -> str:
    return f" ({heartbeat.role})" if heartbeat.role else ""
