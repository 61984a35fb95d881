"""Who runs which pass: one queue for all replicas of the target, in the store where all ranks of a job have met.

A draft rank asks for a pass; the request gets the next number. The replica that is free takes the next number, one at a
time, so a slow one takes fewer; which rows are in a pass was decided by who asked for it. What is done is announced to
the rank that asked, which then receives the states from the replica.

    asked, claimed          counters
    request/N               what pass N is over; its replica takes it away
    announced/D             counter of what was announced to draft rank D
    done/D/M                the M-th of these: a pass of D's is done, and who has it
    usage/R                 how replica R has spent its time so far
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from eagle3cli.backends.target.target import Tokens
from eagle3cli.data.tokens.rows import TokenRow
from eagle3cli.runtime.processes.job import FOREVER


@dataclass(frozen=True)
class Request:
    """A pass of the target over some rows."""

    draft: int
    """The rank among those that train, which asks."""
    number: int
    """Of this rank's requests."""
    token_ids: Sequence[Tokens]
    loss_masks: Sequence[Any]
    """uint8, of each row."""
    judge: bool = False
    """Whether the target's opinion of the rows' own tokens is asked for, too."""
    fit: bool = False
    """Whether an encoding is to be fitted to the states, which nobody else wants."""
    context: int = 1
    """Ranks that share the rows: ``draft`` and those behind it, of which each gets its own positions."""
    steps: int = 0
    """Of the unroll, by which the rows are dealt to them."""

    @classmethod
    def of(cls, draft: int, number: int, rows: Sequence[TokenRow], **flags: Any) -> Request:
        """A request for these rows."""
        return cls(draft, number, [row.token_ids for row in rows], [row.loss_mask for row in rows], **flags)

    def to_bytes(self) -> bytes:
        """A line of JSON, then all tokens as int32, then all masks."""
        head = {name: getattr(self, name) for name in ("draft", "number", "judge", "fit", "context", "steps")}
        lengths = [len(ids) for ids in self.token_ids]
        tokens = [np.asarray(ids, dtype="<i4").tobytes() for ids in self.token_ids]
        masks = [np.asarray(mask, dtype="u1").tobytes() for mask in self.loss_masks]
        return b"".join((json.dumps(head | {"lengths": lengths}).encode(), b"\n", *tokens, *masks))

    @classmethod
    def from_bytes(cls, content: bytes) -> Request:
        """The inverse of :meth:`to_bytes`."""
        line, body = content.split(b"\n", 1)
        head = json.loads(line)
        lengths = head.pop("lengths")
        ends = np.cumsum(lengths)[:-1]
        tokens = np.frombuffer(body, dtype="<i4", count=sum(lengths))
        masks = np.frombuffer(body, dtype="u1", offset=tokens.nbytes)
        return cls(token_ids=np.split(tokens, ends), loss_masks=np.split(masks, ends), **head)


@dataclass(frozen=True)
class Done:
    """A pass that has run."""

    number: int
    """Of the requests of the rank that asked."""
    rank: int
    """Of the job, which sends the states."""
    shared: bool = False
    """Whether the rows are shared by several ranks, who count such requests for themselves."""
    stop: int | None = None
    """The signal by which that rank was asked to stop: the ranks that train decide when."""


@dataclass
class Usage:
    """How a replica has spent its time so far, in seconds; its last word is what counts."""

    passes: int = 0
    tokens: int = 0
    busy: float = 0.0
    """Running the target, and reading its states out."""
    idle: float = 0.0
    """Waiting for somebody to ask."""
    blocked: float = 0.0
    """Waiting for somebody to take what is done."""


class PassQueue:
    """One thread's way to the queue: its connection must not be shared, for some of these calls wait."""

    def __init__(self, store: Any) -> None:
        self.store = store.clone()

    def ask(self, request: Request) -> None:
        """Put a request behind all that were made before."""
        self._put(request.to_bytes())

    def end(self, replicas: int) -> None:
        """Have every replica end, once it has done what was asked for before."""
        for _ in range(replicas):
            self._put(b"")

    def _put(self, content: bytes) -> None:
        number = self.store.add("asked", 1)
        self.store.set(f"request/{number}", content)

    def claim(self) -> Request | None:
        """The next request that no replica has; waits for one. None at the end."""
        content = self._take(f"request/{self.store.add('claimed', 1)}")
        return Request.from_bytes(content) if content else None

    def announce(self, draft: int, done: Done) -> None:
        """Tell a draft rank that a request of its is done."""
        place = self.store.add(f"announced/{draft}", 1)
        self.store.set(f"done/{draft}/{place}", json.dumps(asdict(done)))

    def announced(self, draft: int, place: int) -> Done:
        """What was announced as number ``place`` to a draft rank; waits for it."""
        return Done(**json.loads(self._take(f"done/{draft}/{place}")))

    def _take(self, key: str) -> bytes:
        self.store.wait([key], FOREVER)
        content: bytes = self.store.get(key)
        self.store.delete_key(key)
        return content

    def publish(self, key: str, content: bytes) -> None:
        """Leave something for all ranks."""
        self.store.set(key, content)

    def published(self, key: str) -> bytes:
        """What somebody publishes; waits for it."""
        self.store.wait([key], FOREVER)
        content: bytes = self.store.get(key)
        return content

    def report_usage(self, replica: int, usage: Usage) -> None:
        """Leave how a replica has spent its time."""
        self.store.set(f"usage/{replica}", json.dumps(asdict(usage)))

    def usage(self, replicas: int) -> list[Usage]:
        """What every replica has left of that."""
        keys = [f"usage/{replica}" for replica in range(replicas)]
        return [Usage(**json.loads(self.store.get(key))) if self.store.check([key]) else Usage() for key in keys]
