"""Several servers as one: every request goes to the server with the most room, a failed one goes to another.

What a server may hold adapts to it (:mod:`limits`); one that fails is left alone until a health check succeeds, and its
work moves to the others. All of it runs in one event loop.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Self

import stamina

from eagle3cli.errors import Eagle3Error, UsageError
from eagle3cli.runtime.report import Reporter
from eagle3cli.serving.client.client import Client
from eagle3cli.serving.client.errors import Busy, Lost, Refused, RequestFailed, Unreachable
from eagle3cli.serving.client.limits import Breaker, Limit
from eagle3cli.serving.client.protocol import Answer, Request

stamina.instrumentation.set_on_retry_hooks(())  # its own would write a log line for every retry

FIRST_SECONDS = 30.0
"""How long the servers may take to answer at all when the work begins."""


@dataclass(frozen=True)
class Rules:
    """When the pool gives up on what; times in seconds."""

    attempts: int = 8
    """Tries of a request that was sent and lost."""
    turned_away: int = 100
    """Within one of them: tries that no server let in."""
    patience: float = 600.0
    """The work ends when no server at all has been in service for so long."""
    silence: float = 60.0
    """A server that holds requests and answers none for so long is asked for its health."""
    health: float = 30.0
    """How long an answer to that may take."""
    tick: float = 1.0
    """Time between two looks at a server."""
    retry_wait: float = 0.1
    """Wait before the first retry; it doubles, up to 50 times as much."""


@dataclass
class Server:
    """One server as the pool sees it; the counts are since the pool's start."""

    client: Client
    limit: Limit
    breaker: Breaker = field(default_factory=Breaker)
    in_flight: int = 0
    answers: int = 0
    tokens: int = 0
    last_sign: float = 0.0
    """When it last answered, or got something to do after it had nothing."""
    paused_until: float = 0.0
    refusals_in_a_row: int = 0
    alarms: set[asyncio.Timeout] = field(default_factory=set)

    @property
    def address(self) -> str:
        """As it was given."""
        return self.client.address

    def room(self, now: float) -> int:
        """Requests that it may be given now."""
        if self.breaker.is_open or now < self.paused_until:
            return 0
        return self.limit.places - self.in_flight


class Pool:
    """Use as ``async with``; :meth:`ask` as often at once as there is work, of which ``concurrency`` is under way.

    Example::

        async with Pool([Client("127.0.0.1:30000"), Client("127.0.0.1:30001")]) as pool:
            answers = await asyncio.gather(*[pool.ask(request) for request in requests])
    """

    def __init__(
        self,
        clients: Sequence[Client],
        report: Reporter,
        *,
        concurrency: int = 512,
        rules: Rules | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.servers = [Server(client, Limit(concurrency)) for client in clients]
        self.concurrency, self.rules, self.report = concurrency, rules or Rules(), report
        self.failures: Counter[str] = Counter()
        self.waiting: deque[asyncio.Future[Server]] = deque()
        self._clock = clock
        self._last_in_service = clock()
        self._watches: list[asyncio.Task[None]] = []
        self._broken: Eagle3Error | None = None
        self.model = ""
        """What the servers serve; one that comes back with another model stays out."""

    @property
    def in_flight(self) -> int:
        """Requests inside all servers."""
        return sum(server.in_flight for server in self.servers)

    async def __aenter__(self) -> Self:
        try:
            await self._meet()
        except BaseException:
            await self._close_clients()
            raise
        self._watches = [asyncio.create_task(self._watch(server)) for server in self.servers]
        return self

    async def __aexit__(self, *_: object) -> None:
        for watch in self._watches:
            watch.cancel()
        await asyncio.gather(*self._watches, return_exceptions=True)
        await self._close_clients()

    async def ask(self, request: Request) -> Answer:
        """The answer of any server. Raises Refused (TooLong) at once, Lost after all attempts, Eagle3Error when no
        server is left."""
        rules = self.rules
        wait = {"wait_initial": rules.retry_wait, "wait_max": 50 * rules.retry_wait, "wait_jitter": rules.retry_wait}
        async for attempt in stamina.retry_context(Lost, attempts=rules.attempts, timeout=None, **wait):
            with attempt:
                return await self._ask_until_taken(request)
        raise AssertionError("a retry context ends by an answer or an exception")

    async def _ask_until_taken(self, request: Request) -> Answer:
        """One attempt: a server that cannot be reached or wants less takes nothing, so it does not count."""
        for _ in range(self.rules.turned_away - 1):
            with suppress(Unreachable, Busy):
                return await self._ask_one(request)
        return await self._ask_one(request)

    async def _ask_one(self, request: Request) -> Answer:
        server = await self._place()
        sent = self._clock()
        try:
            async with asyncio.timeout(None) as alarm:
                server.alarms.add(alarm)
                try:
                    answer = await server.client.ask(request)
                finally:
                    server.alarms.discard(alarm)
            self._answered(server, answer.tokens)
            return answer
        except TimeoutError as error:
            self.failures["hang"] += 1
            raise Lost("hang", f"{server.address} stopped answering") from error
        except Refused:
            self._answered(server, 0)
            raise
        except RequestFailed as failure:
            self._failed(server, failure, sent)
            raise
        finally:
            server.in_flight -= 1
            self._hand_out()

    def _answered(self, server: Server, tokens: int) -> None:
        server.last_sign = self._clock()
        server.answers += 1
        server.tokens += tokens
        server.refusals_in_a_row = 0
        server.breaker.succeeded()
        server.limit.answered(server.in_flight)

    def _failed(self, server: Server, failure: RequestFailed, sent: float) -> None:
        now = self._clock()
        self.failures[failure.kind] += 1
        if isinstance(failure, Busy):
            server.limit.objected(sent, now)
            if sent >= server.paused_until:  # those that were under way at the first refusal say nothing new
                server.refusals_in_a_row += 1
                wait = failure.retry_after
                if wait is None:
                    wait = random.uniform(0.5, 1) * min(30.0, 0.5 * 2**server.refusals_in_a_row)
                server.paused_until = now + wait
                asyncio.get_running_loop().call_later(wait, self._hand_out)
            if failure.kind == "429":
                return
        if failure.kind == "time-out":
            server.limit.objected(sent, now)
        self._break(server, str(failure), is_dead=isinstance(failure, Unreachable))

    def _break(self, server: Server, reason: str, *, is_dead: bool) -> None:
        was_open = server.breaker.is_open
        server.breaker.failed(reason, self._clock(), is_dead=is_dead)
        if server.breaker.is_open and not was_open:
            self.report.warn(f"{server.address} is left alone until it is healthy again: {reason}")

    async def _place(self) -> Server:
        """A server with room, one request more already counted."""
        if self._broken is not None:
            raise self._broken
        if not self.waiting and (server := self._free()) is not None:
            self._count_in(server)
            return server
        waiter: asyncio.Future[Server] = asyncio.get_running_loop().create_future()
        self.waiting.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                waiter.result().in_flight -= 1
                self._hand_out()
            raise

    def _count_in(self, server: Server) -> None:
        if not server.in_flight:
            server.last_sign = self._clock()
        server.in_flight += 1

    def _free(self) -> Server | None:
        """The server with the largest share of its limit free."""
        if self.in_flight >= self.concurrency:
            return None
        now = self._clock()
        open_ones = [server for server in self.servers if server.room(now) > 0]
        return max(open_ones, key=lambda server: server.room(now) / server.limit.places, default=None)

    def _hand_out(self) -> None:
        """Give free places to those who wait."""
        while self.waiting:
            if self.waiting[0].done():  # it was cancelled
                self.waiting.popleft()
            elif (server := self._free()) is not None:
                self._count_in(server)
                self.waiting.popleft().set_result(server)
            else:
                return

    async def _meet(self) -> None:
        """Ask all servers who they are; at least one has to answer, and all that do have to serve the same model."""
        until = self._clock() + FIRST_SECONDS
        while True:
            outcomes = await asyncio.gather(*[self._greet(server) for server in self.servers])
            if any(server.client.info for server in self.servers):
                break
            if self._clock() >= until or all(isinstance(outcome, Unreachable) for outcome in outcomes):
                told = "; ".join(f"{s.address}: {o}" for s, o in zip(self.servers, outcomes, strict=True))
                fix = "start the servers first, or leave the flag out and this command starts SGLang itself"
                raise Eagle3Error(f"no server answers ({told})", where="--server-address-port", fix=fix)
            await asyncio.sleep(self.rules.tick)
        models = {server.client.info.model for server in self.servers if server.client.info}
        if len(models) > 1:
            told = ", ".join(f"{s.address} {s.client.info.model}" for s in self.servers if s.client.info)
            fix = "give only servers of one model"
            raise UsageError(f"the servers serve different models: {told}", where="--server-address-port", fix=fix)
        self.model = models.pop()

    async def _greet(self, server: Server) -> RequestFailed | None:
        try:
            await server.client.identify()
        except Refused as refused:
            fix = "set EAGLE3_API_KEY" if refused.kind in ("401", "403") else "check --server-address-port"
            raise Eagle3Error(f"refuses to list its models: {refused}", where=server.address, fix=fix) from refused
        except RequestFailed as failure:
            self._break(server, str(failure), is_dead=True)
            return failure
        server.breaker.recovered()
        return None

    async def _watch(self, server: Server) -> None:
        """Look after one server: its load, its silence, its recovery."""
        while True:
            await asyncio.sleep(self.rules.tick)
            now = self._clock()
            if not server.breaker.is_open:
                if now >= server.paused_until:
                    self._last_in_service = now
                if server.in_flight:
                    if (load := await server.client.load()) is not None:
                        server.limit.told(load.running, load.waiting)
                    if now - server.last_sign > self.rules.silence:
                        await self._doubt(server)
            elif now >= server.breaker.next_check:
                await self._check(server)
            self._hand_out()
            self._give_up(now)

    async def _check(self, server: Server) -> None:
        """See whether a server that is left alone is back."""
        problem = "it is not healthy"
        if await server.client.is_healthy(self.rules.health):
            try:
                model = (await server.client.identify()).model
                problem = "" if model == self.model else f"it serves {model} now, not {self.model}"
            except (RequestFailed, Eagle3Error) as error:
                problem = str(error)
        now = self._clock()
        if problem:
            server.breaker.still_ill(problem, now)
            if now - server.last_sign > self.rules.silence:
                _let_go(server)
            return
        server.breaker.recovered()
        server.limit.restart()
        server.last_sign = now
        self.report.info(f"{server.address} is back")

    async def _doubt(self, server: Server) -> None:
        """A silent server: slow, or dead? Slow ones answer for their health."""
        if await server.client.is_healthy(self.rules.health) or await server.client.is_healthy(self.rules.health):
            server.last_sign = self._clock()
            return
        self._break(server, "it holds requests, answers none and is not healthy", is_dead=True)
        _let_go(server)

    def _give_up(self, now: float) -> None:
        if self._broken is not None or now - self._last_in_service <= self.rules.patience:
            return
        told = "; ".join(f"{server.address}: {server.breaker.reason or 'wants no more'}" for server in self.servers)
        what = f"no server has answered for {self.rules.patience:.0f} s ({told})"
        self._broken = Eagle3Error(what, fix="bring a server back and run the same command again to go on")
        while self.waiting:
            waiter = self.waiting.popleft()
            if not waiter.done():
                waiter.set_exception(self._broken)

    async def _close_clients(self) -> None:
        for server in self.servers:
            await server.client.__aexit__()


def _let_go(server: Server) -> None:
    """End the requests that a dead server holds: they go to another one."""
    for alarm in tuple(server.alarms):
        alarm.reschedule(asyncio.get_running_loop().time())
