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
"""Seconds between two beats, at most."""
WARN_AFTER = 0.25
"""Share of the time-out after which a late rank is named."""


@dataclass
class Beat:
    """What one rank says."""

    alive: int = 0
    moved: int = 0
    waiting: bool = False
    place: str = ""
    host: str = field(default_factory=socket.gethostname)
    process: int = field(default_factory=os.getpid)


class Heart:
    """A thread that beats in the store of the process group and reads the others' beats.

    ``late`` is called once, from the thread, with a rank's last beat and what to tell, when it has been silent for
    ``timeout`` seconds, or has not moved for as long inside the training loop while others wait for it. ``warn`` is
    told earlier.
    """

    def __init__(
        self,
        store: Any,
        index: int,
        count: int,
        timeout: float,
        late: Callable[[Beat, str], None],
        warn: Callable[[str], None],
    ) -> None:
        self.store, self.index, self.count, self.timeout = store, index, count, timeout
        self.late, self.warn, self.warned = late, warn, set[int]()
        self.mine = Beat()
        self.seen = {rank: (Beat(), time.monotonic(), time.monotonic()) for rank in range(count)}
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True, name="heart")

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Within the block this rank does nothing but wait for the others."""
        self.mine.waiting = True
        self.mine.moved += 1
        try:
            yield
        finally:
            self.mine.waiting = False
            self.mine.moved += 1

    def at(self, place: str) -> None:
        """Say where in the training loop this rank is; an empty text is outside of it."""
        self.mine.place = place
        self.mine.moved += 1

    def _run(self) -> None:
        pause = min(PAUSE, self.timeout / 10)
        while not self.ended.wait(pause):
            self.mine.alive += 1
            try:
                self.store.set(f"beat/{self.index}", json.dumps(vars(self.mine)))
                found = {rank: self._read(rank) for rank in range(self.count) if rank != self.index}
            except RuntimeError:  # the store has gone: so has the run
                return
            said = self._judge({rank: beat for rank, beat in found.items() if beat is not None})
            if said is not None and not self.ended.is_set():
                self.late(*said)
                return

    def _read(self, rank: int) -> Beat | None:
        key = f"beat/{rank}"
        return Beat(**json.loads(self.store.get(key))) if self.store.check([key]) else None

    def _judge(self, found: dict[int, Beat]) -> tuple[Beat, str] | None:
        now = time.monotonic()
        for rank, beat in found.items():
            before, alive, moved = self.seen[rank]
            alive = now if beat.alive != before.alive else alive
            moved = now if beat.moved != before.moved else moved
            self.seen[rank] = (beat, alive, moved)
            silent, stuck = now - alive, now - moved
            somebody_waits = self.mine.waiting or any(other.waiting for other in found.values())
            idle = stuck if beat.place and not beat.waiting and somebody_waits else silent
            reason = "does not answer" if idle == silent else f"has not moved on from {beat.place}"
            said = f"rank {rank} ({beat.host}, process {beat.process}) {reason} for {idle:.0f} s"
            if idle > self.timeout:
                return beat, said
            if idle > self.timeout * WARN_AFTER and rank not in self.warned:
                self.warned.add(rank)
                self.warn(f"{said}; the others wait")
            elif idle < self.timeout * WARN_AFTER:
                self.warned.discard(rank)
        return None
