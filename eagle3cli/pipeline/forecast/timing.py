"""A stopwatch for passes on a machine that other programs use, too, and an end to timing that comes in any case."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eagle3cli.pipeline.forecast.ranges import Range

PART_SECONDS = 4.0
"""After so long no further pass of a part begins."""
PASSES = 4
"""The first one warms up and is not counted."""
SLACK = Range(0.75, 1.5)
"""What a stage takes against the fastest and the slowest pass here: clocks, other programs, passes of other sizes."""


class TimeUp(BaseException):
    """The minute is over; no handler of errors may take it for one."""


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """End the block after ``seconds``, between two operations of torch; elsewhere than in the main thread it ends by
    itself alone."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: Any) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        with suppress(TimeUp):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@dataclass(frozen=True)
class Timing:
    """Passes of one kind."""

    seconds: Sequence[float]
    waited: float
    """Share of their time in which they were ready and other programs had the processor."""

    def range(self) -> Range:
        """What such a pass takes: from the fastest without that share to the slowest."""
        return Range(SLACK.low * min(self.seconds) * (1 - self.waited), SLACK.high * max(self.seconds))


class Clock:
    """Times passes from its start on: the time between two calls of :meth:`tick` is one."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.ticks: list[float] = []
        self.before = (0, 0)

    def tick(self) -> None:
        """The device has done all that it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        if len(self.ticks) == 1:  # what warms up is behind us
            self.before = _processor_times()
        self.ticks.append(time.perf_counter())

    @property
    def is_enough(self) -> bool:
        """So many passes, or at least one after the first and no time left for more."""
        passes = len(self.ticks) - 1
        return passes >= PASSES or (passes > 1 and self.ticks[-1] - self.ticks[0] > PART_SECONDS)

    def timing(self) -> Timing:
        """Of all passes but the first, which warms up."""
        passes = [end - begin for begin, end in zip(self.ticks[1:-1], self.ticks[2:], strict=True)]
        return Timing(passes, _waited_since(self.before))


def time_once(work: Callable[[], object]) -> Timing:
    """Time ``work`` where it can be done only once."""
    before = _processor_times()
    began = time.perf_counter()
    work()
    return Timing([time.perf_counter() - began], _waited_since(before))


def _waited_since(before: tuple[int, int]) -> float:
    ran, waited = (now - then for now, then in zip(_processor_times(), before, strict=True))
    return waited / max(1, ran + waited)


def _processor_times() -> tuple[int, int]:
    """Nanoseconds that this thread ran, and that it was ready and had no processor; zeros where no kernel tells."""
    try:
        ran, waited = Path("/proc/thread-self/schedstat").read_text(encoding="ascii").split()[:2]
    except (OSError, ValueError):
        return 0, 0
    return int(ran), int(waited)


def repeat(work: Callable[[], object], device: torch.device) -> Timing:
    """Time ``work`` a few times, behind one that warms up."""
    clock = Clock(device)
    clock.tick()
    while not clock.is_enough:
        work()
        clock.tick()
    return clock.timing()
