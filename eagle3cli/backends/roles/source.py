"""Batches whose states the target's own ranks make, while the draft trains on those before.

Which rows a batch has is for the sampler alone; a few of the batches to come are asked for ahead, and no more than
that are ever here or on their way.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from eagle3cli.backends.batches.batch import TargetBatch
from eagle3cli.backends.batches.context import ContextGroup, ContextShard
from eagle3cli.backends.roles.message import LossStates, Message, Shape, Where
from eagle3cli.backends.roles.queue import Done, PassQueue, Request, Usage
from eagle3cli.backends.roles.serve import FITTED
from eagle3cli.backends.target.on_policy import OnPolicyMeter
from eagle3cli.data.hidden_states.calibration import sample_rows
from eagle3cli.data.hidden_states.rows import count_rows
from eagle3cli.data.tokens.rows import TokenRows
from eagle3cli.runtime.devices import SideStream, to_device
from eagle3cli.runtime.distributed import Ranks
from eagle3cli.runtime.processes.job import Job
from eagle3cli.runtime.stop import Stop

AHEAD = 2
"""Batches that a draft rank has asked for beyond the one it trains on."""
NOTHING = -1
"""Number of no request: its announcement is the last."""
END_TIMEOUT = 10.0
"""Seconds for what is still being received when a process ends."""
FIT_TOKENS = 4096
"""Tokens of the rows that an encoding is fitted to."""


@dataclass(frozen=True)
class _Asked:
    """A pass on its way."""

    where: Where
    judged: bool
    states: Future[tuple[LossStates, torch.cuda.Event | None]]
    shard: ContextShard | None = None
    """Where the rows are shared with other ranks: this one's part."""


class TargetRanks:
    """A draft rank's way to the target: passes are asked for by their rows, and come back as states."""

    def __init__(self, ranks: Ranks, shape: Shape, device: torch.device, replicas: int) -> None:
        assert ranks.job is not None
        self.ranks = ranks
        self.job: Job = ranks.job
        self.shape = shape
        self.device = device
        self.replicas = replicas
        """Targets that the job has."""
        self.stop: Stop | None = None
        """Learns of signals that the target's ranks have got."""
        self.asked = 0
        self.most_waiting_bytes = 0
        """The most that states took which were here before they were used."""
        self._queue = PassQueue(self.job.store)
        self._waiting_bytes = 0
        self._lock = threading.Condition()
        self._requests: dict[tuple[bool, int], _Asked] = {}
        """What is on its way: whether it is shared with other ranks, and its number among those that are or are not."""
        self._shared = 0
        self._closing = False
        self._failure: BaseException | None = None
        self._beside = SideStream(device) if device.type == "cuda" else None
        self._layout: Message | None = None
        self._receiver: threading.Thread | None = None

    def begin(self, rows: TokenRows) -> None:
        """Agree with the target's ranks on how states travel; an encoding may have to be fitted to some of ``rows``."""
        fitted = b""
        if self.shape.fitted:
            if self.ranks.is_main:
                sample = [rows[row] for row in sample_rows(count_rows(rows), FIT_TOKENS)]
                self._queue.ask(Request.of(self.ranks.rank, 0, sample, fit=True))
            with self.ranks.waiting():
                fitted = self._queue.published(FITTED)
        self._layout = self.shape.message(self.device, fitted)
        self._receiver = threading.Thread(target=self._receive, daemon=True, name="receive")
        self._receiver.start()
        self.job.closers.append(self.close)

    def wait_until_loaded(self) -> None:
        """Go on once every replica of the target is there."""
        with self.ranks.waiting():
            for replica in range(self.replicas):
                self._queue.published(f"loaded/{replica}")

    def ask(
        self, rows: TokenRows, numbers: Sequence[int], *, judge: bool, context: ContextGroup | None = None
    ) -> _Asked:
        """Ask for the states of some rows; of rows that a group shares the first rank asks, and each gets its own."""
        chosen = [rows[number] for number in numbers]
        where = Where.of([row.loss_mask for row in chosen])
        if context is None:
            self.asked += 1
            number = self.asked
            asked = _Asked(where, judge, Future())
        else:
            self._shared += 1
            number = self._shared
            shard = context.deal(where.cu_seqlens, where.loss_mask_N)
            asked = _Asked(where.dealt(shard), judge, Future(), shard)
        with self._lock:
            if self._failure is not None:
                raise self._failure
            self._requests[context is not None, number] = asked
            self._lock.notify_all()
        if context is None:
            self._queue.ask(Request.of(self.ranks.rank, number, chosen, judge=judge))
        elif context.rank == 0:
            dealt = {"context": context.size, "steps": context.steps}
            self._queue.ask(Request.of(self.ranks.rank, number, chosen, judge=judge, **dealt))
        return asked

    def take(self, asked: _Asked) -> LossStates:
        """The states of what was asked for; waits for them."""
        with self.ranks.waiting():
            states, arrived = asked.states.result()
        with self._lock:
            self._waiting_bytes -= _size(states)
        if arrived is not None:
            assert self._beside is not None
            self._beside.join(arrived, _tensors(states))
        return states

    def finish(self) -> None:
        """Take what is still on its way; once all draft ranks have, the target's ranks end."""
        with self._lock:
            on_their_way = list(self._requests.values())
        for asked in on_their_way:
            self.take(asked)
        self.close()
        self.ranks.barrier()
        if self.ranks.is_main:
            self._queue.end(self.replicas)

    def close(self) -> None:
        """End the thread that receives: it waits for announcements, and one of our own is the last."""
        if self._receiver is None:
            return
        with self._lock:
            self._closing = True
            self._lock.notify_all()
        with suppress(RuntimeError):  # the store has gone, and so will the thread
            self._queue.announce(self.ranks.rank, Done(NOTHING, self.job.rank))
        self._receiver.join(END_TIMEOUT)
        self._receiver = None

    def usage(self) -> list[Usage]:
        """How the replicas have spent their time so far."""
        return self._queue.usage(self.replicas)

    def _receive(self) -> None:
        """In the receiver's thread: whatever is announced next."""
        queue = PassQueue(self.job.store)
        place = 0
        try:
            while True:
                place += 1
                done = queue.announced(self.ranks.rank, place)
                if done.number == NOTHING:
                    return
                if self.stop is not None and self.stop.requested is None:
                    self.stop.requested = done.stop
                key = (done.shared, done.number)
                with self._lock:
                    # Of a group the first rank asks: this one may be about to.
                    self._lock.wait_for(lambda key=key: key in self._requests or self._closing)  # type: ignore[misc]
                    asked = self._requests[key]
                received = self._fetch(asked, done.rank)
                with self._lock:
                    del self._requests[key]
                    self._waiting_bytes += _size(received[0])
                    self.most_waiting_bytes = max(self.most_waiting_bytes, self._waiting_bytes)
                asked.states.set_result(received)
        except BaseException as error:
            with self._lock:
                self._failure = error
                failed = list(self._requests.values())
            for asked in failed:
                asked.states.set_exception(error)

    def _fetch(self, asked: _Asked, rank: int) -> tuple[LossStates, torch.cuda.Event | None]:
        assert self._layout is not None
        if self._beside is None:
            return self._read(asked, rank), None
        with self._beside.running() as arrived:
            return self._read(asked, rank), arrived

    def _read(self, asked: _Asked, rank: int) -> LossStates:
        assert self._layout is not None
        message = self._layout.empty(asked.where, self.device, judged=asked.judged)
        self.job.receive(message, rank)
        return self._layout.unpack(message, asked.where, judged=asked.judged)


class RemoteSource:
    """A BatchSource over token rows whose target is on other ranks."""

    def __init__(self, target: TargetRanks, rows: TokenRows) -> None:
        self.target = target
        self.rows = rows
        self.meter: OnPolicyMeter | None = None
        """Sees, where there is one, whether the replies are the target's own."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of every row."""
        return self.rows.lengths

    def dealt(self, context: ContextGroup) -> RemoteSource:
        """The same for a rank that shares every batch with others."""
        source = DealtRemoteSource(self.target, self.rows, context)
        source.meter = self.meter
        return source

    def batch(self, rows: Sequence[int]) -> TargetBatch:
        """Ask for the states of these rows and wait for them; positions whose states nobody reads are zero."""
        return self.take(rows, self.ask(rows))

    def ask(self, rows: Sequence[int]) -> _Asked:
        """Ask for the states of these rows."""
        return self.target.ask(self.rows, rows, judge=self.meter is not None and self.meter.wants(rows))

    def take(self, rows: Sequence[int], asked: _Asked) -> TargetBatch:
        """The batch of rows that were asked for."""
        states = self.target.take(asked)
        where = asked.where
        device = self.target.device
        tokens = len(where.loss_mask_N)
        teacher_R = to_device(where.teacher_R, device)
        aux_NC = _scattered(states.aux_UC.to(self.target.shape.dtype), to_device(where.aux_at_U, device), tokens)
        last_NH = _scattered(states.last_RH.to(self.target.shape.dtype), teacher_R, tokens)
        top_N = torch.full((tokens,), -1, dtype=torch.long, device=device)
        top_N[teacher_R] = states.top_R
        token_ids_N = torch.cat([torch.tensor(self.rows[row].token_ids, dtype=torch.long) for row in rows])
        token_ids_N = to_device(token_ids_N, device)
        if self.meter is not None and states.judged_2R is not None:
            judged_2N = torch.zeros(2, tokens, device=device)
            judged_2N[:, teacher_R] = states.judged_2R
            self.meter.add(rows, token_ids_N, where.loss_mask_N, where.cu_seqlens, top_N, judged_2N)
        return TargetBatch(
            token_ids_N=token_ids_N,
            loss_mask_N=where.loss_mask_N,
            cu_seqlens=where.cu_seqlens,
            aux_NC=aux_NC,
            last_NH=last_NH,
            top_N=top_N,
            rows=tuple(rows),
        )


class DealtRemoteSource(RemoteSource):
    """The same for a rank that shares its rows with others: it gets the states of its own positions alone.

    All ranks of the group ask for the same batches in the same order.
    """

    def __init__(self, target: TargetRanks, rows: TokenRows, context: ContextGroup) -> None:
        super().__init__(target, rows)
        self.context = context
        self._seen = set[int]()
        """Rows whose tokens have been judged: all ranks of a group know the same."""

    def ask(self, rows: Sequence[int]) -> _Asked:
        """Ask for this rank's states of these rows."""
        judge = not self._seen.issuperset(rows)
        self._seen.update(rows)
        return self.target.ask(self.rows, rows, judge=judge, context=self.context)

    def take(self, rows: Sequence[int], asked: _Asked) -> TargetBatch:
        """This rank's part of the rows that were asked for."""
        states = self.target.take(asked)
        where = asked.where
        shard = asked.shard
        assert where.held is not None, "asked for by a group"
        assert shard is not None, "asked for by a group"
        device = self.target.device
        dtype = self.target.shape.dtype
        held = len(shard.packed_n)
        teacher_R = to_device(where.teacher_R, device)
        packed_n = to_device(shard.packed_n, device)
        top_N = torch.full((len(where.loss_mask_N),), -1, dtype=torch.long, device=device)
        top_N[teacher_R] = states.top_R
        token_ids_N = torch.cat([torch.tensor(self.rows[row].token_ids, dtype=torch.long) for row in rows])
        if self.meter is not None and states.judged_2R is not None and self.meter.wants(rows):
            judged_2N = torch.zeros(2, len(top_N), device=device)
            judged_2N[:, teacher_R] = states.judged_2R
            self.meter.add(rows, token_ids_N, where.loss_mask_N, where.cu_seqlens, top_N, judged_2N)
        return TargetBatch(
            token_ids_N=to_device(token_ids_N[shard.packed_n], device),
            loss_mask_N=where.loss_mask_N[shard.packed_n],
            cu_seqlens=shard.pieces,
            aux_NC=_scattered(states.aux_UC.to(dtype), to_device(where.held.aux_at_M, device), held),
            last_NH=_scattered(states.last_RH.to(dtype), to_device(where.held.last_at_n, device), held),
            top_N=top_N[packed_n],
            rows=tuple(rows),
            shard=shard,
        )


class AskedAhead:
    """A :class:`RemoteSource` that knows which batches will be asked for; any other is asked for when it is wanted."""

    def __init__(self, source: RemoteSource, upcoming: Iterable[Sequence[int]], ahead: int = AHEAD) -> None:
        self.source = source
        self.ahead = ahead
        self._upcoming: Iterator[tuple[int, ...]] = (tuple(rows) for rows in upcoming if rows)
        self._asked: deque[tuple[tuple[int, ...], _Asked]] = deque()
        self.tokens = 0
        """Of the batches that were taken from those ahead."""
        self.waited = 0.0
        """Seconds, for those."""

    @property
    def lengths(self) -> Sequence[int]:
        """Tokens of every row."""
        return self.source.lengths

    def batch(self, rows: Sequence[int]) -> TargetBatch:
        """The batch of these rows; the next ones are asked for before it is waited for."""
        if not self._asked:
            self._fill(1)
        if not self._asked or self._asked[0][0] != tuple(rows):
            return self.source.batch(rows)
        _, asked = self._asked.popleft()
        self._fill(self.ahead)
        began = time.perf_counter()
        batch = self.source.take(rows, asked)
        self.waited += time.perf_counter() - began
        self.tokens += batch.own_tokens
        return batch

    def _fill(self, ahead: int) -> None:
        while len(self._asked) < ahead and (rows := next(self._upcoming, None)) is not None:
            self._asked.append((rows, self.source.ask(rows)))


def _scattered(states_RX: Tensor, at_R: Tensor, tokens: int) -> Tensor:
    return states_RX.new_zeros(tokens, states_RX.shape[1]).index_copy_(0, at_R, states_RX)


def _tensors(states: LossStates) -> list[Tensor]:
    tensors = (states.aux_UC, states.last_RH, states.top_R, states.judged_2R)
    return [tensor for tensor in tensors if tensor is not None]


def _size(states: LossStates) -> int:
    return sum(tensor.nbytes for tensor in _tensors(states))
