"""Where the time of training steps goes, and what they take of memory and processor."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

try:
    import resource
except ImportError:  # not on Windows
    resource = None  # type: ignore[assignment]

PARTS = ("target", "reading", "forward", "backward", "optimiser", "waiting")
"""The target's pass, or reading its states from disk; the draft's passes; its optimiser; waiting for other ranks."""


@dataclass
class Stopwatch:
    """Seconds of every part since the last :meth:`read`.

    On a GPU each part lies between two events on the stream, which are read with the next log line: nothing waits
    for them.
    """

    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(PARTS, 0.0))
    events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = field(default_factory=list)
    processor: float = field(default_factory=time.process_time)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Count the block's time as that of a part."""
        if self.device.type == "cuda":
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            yield
            end.record()
            self.events.append((name, begin, end))
            return
        began = time.perf_counter()
        yield
        self.seconds[name] += time.perf_counter() - began

    def read(self) -> list[float]:
        """Seconds of each of PARTS, and of the processor's time; then all begin anew. Waits for the GPU."""
        if self.events:
            self.events[-1][2].synchronize()
            for name, begin, end in self.events:
                self.seconds[name] += begin.elapsed_time(end) / 1000
        found = [self.seconds[name] for name in PARTS]
        now = time.process_time()
        found.append(now - self.processor)
        self.processor, self.events, self.seconds = now, [], dict.fromkeys(PARTS, 0.0)
        return found

    def peak_memory(self) -> int:
        """Bytes: the most that tensors took of the GPU, or this process of the machine's memory, so far."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        if resource is None:
            return 0
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def shares(parts: list[float], seconds: float) -> dict[str, float]:
    """The share of ``seconds`` that each of PARTS took, and ``other``: planning, checkpoints, logging."""
    total = max(seconds, sum(parts), 1e-9)
    found = {name: round(spent / total, 4) for name, spent in zip(PARTS, parts, strict=True) if spent}
    return found | {"other": round(max(0.0, 1 - sum(parts) / total), 4)}
