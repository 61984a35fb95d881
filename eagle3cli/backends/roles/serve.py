"""A replica of the target at work: it takes the next pass that is asked for, and sends the states to who asked."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from eagle3cli.backends.batches.context import deal
from eagle3cli.backends.roles.message import Message, Shape, Where, fit, read_states
from eagle3cli.backends.roles.queue import Done, PassQueue, Request, Usage
from eagle3cli.backends.target.target import LiveTarget
from eagle3cli.runtime.distributed import Ranks
from eagle3cli.runtime.processes.job import Job
from eagle3cli.runtime.stop import Stop

UNSENT = 1
"""Passes whose states may wait here to be fetched while the next one runs."""
FITTED = "fitted encoding"


@dataclass
class Replica:
    """One of the targets of a job; the methods are for its first rank."""

    target: LiveTarget
    ranks: Ranks
    shape: Shape
    number: int
    """Among the replicas."""
    stop: Stop
    """Whether somebody asked this process to stop."""
    usage: Usage = field(default_factory=Usage)

    def __post_init__(self) -> None:
        assert self.ranks.job is not None
        self.job: Job = self.ranks.job
        self.queue = PassQueue(self.job.store)
        self.place = "the target's first pass"
        """What is under way, for people."""
        self.most_unsent = 0
        """The most passes whose states were here at once because nobody had taken them yet."""
        self._layout: Message | None = None
        self._unsent: deque[Future[float]] = deque()

    def serve(self) -> None:
        """Work until the draft's ranks want no more."""
        self.queue.publish(f"loaded/{self.number}", b"yes")
        sender = ThreadPoolExecutor(1, "send")
        announcements = PassQueue(self.job.store)
        while (request := self._next()) is not None:
            self.place = f"target pass {self.usage.passes + 1}, for rank {self.job.targets + request.draft}"
            self.ranks.at(self.place)
            began = _Moment(self.target.device)
            messages = self._run(request)
            if messages:
                done = _Moment(self.target.device)
                self._unsent.append(sender.submit(self._send, announcements, request, messages, began, done))
                self.most_unsent = max(self.most_unsent, len(self._unsent))
            self.usage.passes += 1
            self.usage.tokens += sum(map(len, request.token_ids))
            self._wait_for_senders(UNSENT)
            self.queue.report_usage(self.number, self.usage)
        self._wait_for_senders(0)
        self.queue.report_usage(self.number, self.usage)
        sender.shutdown()

    def _next(self) -> Request | None:
        """The next request; what is done meanwhile goes out beside the wait."""
        with self.ranks.waiting(), self._counted("idle"):
            return self.queue.claim()

    @torch.no_grad()
    def _run(self, request: Request) -> list[Tensor]:
        """The messages that answer a request, one for each rank that shares its rows; none where it was answered for
        all ranks."""
        states = read_states(self.target, request, self.target.capture(request.token_ids))
        if request.fit:
            self.queue.publish(FITTED, fit(self.shape, states))
            return []
        if self._layout is None:
            fitted = self.queue.published(FITTED) if self.shape.fitted else b""
            self._layout = self.shape.message(self.target.device, fitted)
        if request.context == 1:
            return [self._layout.pack(states)]
        where = Where.of(request.loss_masks)
        ranks = range(request.context)
        shards = (deal(where.cu_seqlens, where.loss_mask_N, rank, len(ranks), steps=request.steps) for rank in ranks)
        parts = (where.dealt(shard).held for shard in shards)
        return [self._layout.pack(states.dealt(part)) for part in parts if part is not None]

    def _send(
        self, announcements: PassQueue, request: Request, messages: list[Tensor], began: _Moment, done: _Moment
    ) -> float:
        """In the sender's thread: have the states fetched once the device has made them; returns the pass's seconds."""
        seconds = done.since(began)
        shared = request.context > 1
        for draft, message in enumerate(messages, request.draft):
            announcements.announce(draft, Done(request.number, self.job.rank, shared, self.stop.requested))
            self.job.send(message, self.job.targets + draft)
        return seconds

    def _wait_for_senders(self, most: int) -> None:
        while len(self._unsent) > most:
            with self.ranks.waiting(), self._counted("blocked"):
                self.usage.busy += self._unsent.popleft().result()

    @contextmanager
    def _counted(self, name: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        setattr(self.usage, name, getattr(self.usage, name) + time.perf_counter() - began)


class _Moment:
    """A moment of a device's time: what it had been given before is done then."""

    def __init__(self, device: torch.device) -> None:
        self.event = None
        self.time = time.perf_counter()
        if device.type == "cuda":
            self.event = torch.cuda.Event(enable_timing=True)
            self.event.record()

    def since(self, other: _Moment) -> float:
        """Seconds between two moments; the host waits for the later one."""
        if self.event is None or other.event is None:
            return self.time - other.time
        self.event.synchronize()
        return float(other.event.elapsed_time(self.event)) / 1000
