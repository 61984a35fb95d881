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
from eagle3cli.serving.client.errors import Busy, Lost, Refused, RequestFailed, Unreachable, no_server_answers
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
class Endpoint:
    """One server as the pool sees it; the counts are since the pool's start."""

    client: Client
    limit: Limit
    breaker: Breaker = field(default_factory=Breaker)
    in_flight: int = 0
    tokens: int = 0
    last_activity: float = 0.0
    """When it last answered, or got something to do after it had nothing."""
    paused_until: float = 0.0
    refusals_in_a_row: int = 0
    timeouts: set[asyncio.Timeout] = field(default_factory=set)

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
        self.endpoints = [Endpoint(client, Limit(concurrency)) for client in clients]
        self.concurrency = concurrency
        self.rules = rules or Rules()
        self.report = report
        self.errors: Counter[str] = Counter()
        self.waiting: deque[asyncio.Future[Endpoint]] = deque()
        self._clock = clock
        self._last_in_service = clock()
        self._watchers: list[asyncio.Task[None]] = []
        self._broken: Eagle3Error | None = None
        self.model = ""
        """What the servers serve; one that comes back with another model stays out."""

    @property
    def in_flight(self) -> int:
        """Requests inside all servers."""
        return sum(endpoint.in_flight for endpoint in self.endpoints)

    async def __aenter__(self) -> Self:
        try:
            await self._identify_all()
        except BaseException:
            await self._close()
            raise
        self._watchers = [asyncio.create_task(self._watch(endpoint)) for endpoint in self.endpoints]
        return self

    async def __aexit__(self, *_: object) -> None:
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*self._watchers, return_exceptions=True)
        await self._close()

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
        endpoint = await self._acquire()
        sent = self._clock()
        try:
            async with asyncio.timeout(None) as timeout:
                endpoint.timeouts.add(timeout)
                try:
                    answer = await endpoint.client.ask(request)
                finally:
                    endpoint.timeouts.discard(timeout)
            self._answered(endpoint, answer.tokens)
            return answer
        except TimeoutError as error:
            self.errors["hang"] += 1
            raise Lost("hang", f"{endpoint.address} stopped answering") from error
        except Refused:
            self._answered(endpoint, 0)
            raise
        except RequestFailed as error:
            self._failed(endpoint, error, sent)
            raise
        finally:
            endpoint.in_flight -= 1
            self._assign_waiting()

    def _answered(self, endpoint: Endpoint, tokens: int) -> None:
        endpoint.last_activity = self._clock()
        endpoint.tokens += tokens
        endpoint.refusals_in_a_row = 0
        endpoint.breaker.record_success()
        endpoint.limit.record_answer(endpoint.in_flight)

    def _failed(self, endpoint: Endpoint, error: RequestFailed, sent: float) -> None:
        now = self._clock()
        self.errors[error.kind] += 1
        if isinstance(error, Busy):
            endpoint.limit.record_overload(sent, now)
            if sent >= endpoint.paused_until:  # those that were under way at the first refusal say nothing new
                endpoint.refusals_in_a_row += 1
                wait = error.retry_after
                if wait is None:
                    wait = random.uniform(0.5, 1) * min(30.0, 0.5 * 2**endpoint.refusals_in_a_row)
                endpoint.paused_until = now + wait
                asyncio.get_running_loop().call_later(wait, self._assign_waiting)
            if error.kind == "429":
                return
        if error.kind == "time-out":
            endpoint.limit.record_overload(sent, now)
        self._break(endpoint, str(error), is_dead=isinstance(error, Unreachable))

    def _break(self, endpoint: Endpoint, reason: str, *, is_dead: bool) -> None:
        was_open = endpoint.breaker.is_open
        endpoint.breaker.record_failure(reason, self._clock(), is_dead=is_dead)
        if endpoint.breaker.is_open and not was_open:
            self.report.warn(f"{endpoint.address} is left alone until it is healthy again: {reason}")

    async def _acquire(self) -> Endpoint:
        """A server with room, one request more already counted."""
        if self._broken is not None:
            raise self._broken
        if not self.waiting and (endpoint := self._least_loaded()) is not None:
            self._occupy(endpoint)
            return endpoint
        waiter: asyncio.Future[Endpoint] = asyncio.get_running_loop().create_future()
        self.waiting.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                waiter.result().in_flight -= 1
                self._assign_waiting()
            raise

    def _occupy(self, endpoint: Endpoint) -> None:
        if not endpoint.in_flight:
            endpoint.last_activity = self._clock()
        endpoint.in_flight += 1

    def _least_loaded(self) -> Endpoint | None:
        """The server with the largest share of its limit free."""
        if self.in_flight >= self.concurrency:
            return None
        now = self._clock()
        available = [endpoint for endpoint in self.endpoints if endpoint.room(now) > 0]
        return max(available, key=lambda endpoint: endpoint.room(now) / endpoint.limit.places, default=None)

    def _assign_waiting(self) -> None:
        """Give free places to those who wait."""
        while self.waiting:
            if self.waiting[0].done():  # it was cancelled
                self.waiting.popleft()
            elif (endpoint := self._least_loaded()) is not None:
                self._occupy(endpoint)
                self.waiting.popleft().set_result(endpoint)
            else:
                return

    async def _identify_all(self) -> None:
        """Ask all servers who they are; at least one has to answer, and all that do have to serve the same model."""
        until = self._clock() + FIRST_SECONDS
        while True:
            outcomes = await asyncio.gather(*[self._identify(endpoint) for endpoint in self.endpoints])
            if any(endpoint.client.info for endpoint in self.endpoints):
                break
            if self._clock() >= until or all(isinstance(outcome, Unreachable) for outcome in outcomes):
                pairs = zip(self.endpoints, outcomes, strict=True)
                raise no_server_answers(f"{endpoint.address}: {outcome}" for endpoint, outcome in pairs)
            await asyncio.sleep(self.rules.tick)
        models = {endpoint.client.info.model for endpoint in self.endpoints if endpoint.client.info}
        if len(models) > 1:
            details = ", ".join(f"{s.address} {s.client.info.model}" for s in self.endpoints if s.client.info)
            fix = "give only servers of one model"
            raise UsageError(
                "servers-differ",
                f"the servers serve different models: {details}",
                where="--server-address-port",
                fix=fix,
            )
        self.model = models.pop()

    async def _identify(self, endpoint: Endpoint) -> RequestFailed | None:
        try:
            await endpoint.client.identify()
        except Refused as error:
            fix = "set EAGLE3_API_KEY" if error.kind in ("401", "403") else "check --server-address-port"
            raise Eagle3Error(
                "no-server", f"refuses to list its models: {error}", where=endpoint.address, fix=fix
            ) from error
        except RequestFailed as error:
            self._break(endpoint, str(error), is_dead=True)
            return error
        endpoint.breaker.close()
        return None

    async def _watch(self, endpoint: Endpoint) -> None:
        """Look after one server: its load, its silence, its recovery."""
        while True:
            await asyncio.sleep(self.rules.tick)
            now = self._clock()
            if not endpoint.breaker.is_open:
                if now >= endpoint.paused_until:
                    self._last_in_service = now
                if endpoint.in_flight:
                    if (load := await endpoint.client.load()) is not None:
                        endpoint.limit.record_load(load.running, load.waiting)
                    if now - endpoint.last_activity > self.rules.silence:
                        await self._check_silent(endpoint)
            elif now >= endpoint.breaker.next_check:
                await self._check_recovery(endpoint)
            self._assign_waiting()
            self._give_up(now)

    async def _check_recovery(self, endpoint: Endpoint) -> None:
        """See whether a server that is left alone is back."""
        problem = "it is not healthy"
        if await endpoint.client.is_healthy(self.rules.health):
            try:
                model = (await endpoint.client.identify()).model
                problem = "" if model == self.model else f"it serves {model} now, not {self.model}"
            except (RequestFailed, Eagle3Error) as error:
                problem = str(error)
        now = self._clock()
        if problem:
            endpoint.breaker.record_failed_check(problem, now)
            if now - endpoint.last_activity > self.rules.silence:
                _cancel_requests(endpoint)
            return
        endpoint.breaker.close()
        endpoint.limit.restart()
        endpoint.last_activity = now
        self.report.info(f"{endpoint.address} is back")

    async def _check_silent(self, endpoint: Endpoint) -> None:
        """A silent server: slow, or dead? Slow ones answer for their health."""
        if await endpoint.client.is_healthy(self.rules.health) or await endpoint.client.is_healthy(self.rules.health):
            endpoint.last_activity = self._clock()
            return
        self._break(endpoint, "it holds requests, answers none and is not healthy", is_dead=True)
        _cancel_requests(endpoint)

    def _give_up(self, now: float) -> None:
        if self._broken is not None or now - self._last_in_service <= self.rules.patience:
            return
        details = "; ".join(f"{e.address}: {e.breaker.reason or 'wants no more'}" for e in self.endpoints)
        what = f"no server has answered for {self.rules.patience:.0f} s ({details})"
        self._broken = Eagle3Error(
            "server-error", what, fix="bring a server back and run the same command again to go on"
        )
        while self.waiting:
            waiter = self.waiting.popleft()
            if not waiter.done():
                waiter.set_exception(self._broken)

    async def _close(self) -> None:
        for endpoint in self.endpoints:
            await endpoint.client.aclose()


def _cancel_requests(endpoint: Endpoint) -> None:
    """End the requests that a dead server holds: they go to another one."""
    for timeout in tuple(endpoint.timeouts):
        timeout.reschedule(asyncio.get_running_loop().time())
