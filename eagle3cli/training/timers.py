"""Where the time of training steps goes, and what they take of memory and processor."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch

from eagle3cli.runtime.devices import peak_resident_bytes

PARTS = ("target", "reading", "forward", "backward", "optimiser", "waiting", "communication")
"""The target's pass, or reading its states from disk; the draft's passes; its optimiser; waiting for other ranks, and
the gradients' way between them."""


@dataclass
class Timers:
    """Seconds of every part since the last :meth:`read`; a part inside another one's block is counted apart.

    On a GPU each part lies between two events on the stream, which are read with the next log line: nothing waits
    for them.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)
    cpu_seconds: float = field(default_factory=time.process_time)
    running: list[str] = field(default_factory=list)
    """The part that is measured, last, and those around it."""
    since: Any = None
    """When its time began: an event on a GPU, else seconds."""

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the block's time as that of a part."""
        self._mark()
        self.running.append(name)
        yield
        self._mark()
        self.running.pop()

    def _mark(self) -> None:
        """What runs now has run until here."""
        now: Any = time.perf_counter()
        if self.device.type == "cuda":
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        if self.running and self.device.type == "cuda":
            self.events.append((self.running[-1], self.since, now))
        elif self.running:
            self.seconds[self.running[-1]] += now - self.since
        self.since = now

    def read(self) -> list[float]:
        """Seconds of each of PARTS, and of the processor's time; then all begin anew. Waits for the GPU."""
        if self.events:
            self.events[-1][2].synchronize()
            for name, begin, end in self.events:
                self.seconds[name] += begin.elapsed_time(end) / 1000
        now = time.process_time()
        read = [*(self.seconds[name] for name in PARTS), now - self.cpu_seconds]
        self.cpu_seconds = now
        self.events = []
        self.seconds = dict.fromkeys(PARTS, 0.0)
        return read

    def peak_memory(self) -> int:
        """Bytes: the most that tensors took of the GPU, or this process of the machine's memory, so far."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        return peak_resident_bytes()


def shares(parts: list[float], seconds: float) -> dict[str, float]:
    """The share of ``seconds`` that each of PARTS took, and ``other``: planning, checkpoints, logging."""
    total = max(seconds, sum(parts), 1e-9)
    by_part = {name: round(spent / total, 4) for name, spent in zip(PARTS, parts, strict=True) if spent}
    return by_part | {"other": round(max(0.0, 1 - sum(parts) / total), 4)}
