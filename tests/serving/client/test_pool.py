"""Requests through several servers that fail: every one answered, by servers that work, and not too many at once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from eagle3cli.runtime.report import Silent
from eagle3cli.serving.client.client import Client, base_url
from eagle3cli.serving.client.errors import Lost, Refused, Unreachable
from eagle3cli.serving.client.pool import Pool, Rules
from eagle3cli.serving.client.protocol import Request
from tests.failing import fails
from tests.serving.client.fake_server import FakeServer, Faults, reply_to

QUICK = Rules(tick=0.02, silence=0.3, health=0.3, retry_wait=0.01)


def ask(number: int) -> Request:
    return Request(100, [{"role": "user", "content": f"q{number}"}])


def expected(number: int) -> str:
    return reply_to([{"role": "user", "content": f"q{number}"}])


def play(
    act: Callable[..., Awaitable[Any]],
    *faults: Faults,
    rules: Rules = QUICK,
    concurrency: int = 64,
    seconds: float = 1800,
) -> tuple[Any, Silent]:
    """Run ``act(pool, *servers)`` against fake servers."""
    report = Silent()

    async def run() -> Any:
        servers = [FakeServer(fault) for fault in faults]
        for server in servers:
            await server.start()
        try:
            clients = [Client(server.address, seconds=seconds) for server in servers]
            async with Pool(clients, report, concurrency=concurrency, rules=rules) as pool:
                return await act(pool, *servers)
        finally:
            for server in servers:
                await server.stop()

    return asyncio.run(run()), report


async def until(condition: Callable[[], object]) -> None:
    """Wait for what will be, however busy the machine is."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


async def all_of(pool: Pool, count: int) -> None:
    answers = await asyncio.gather(*[pool.ask(ask(number)) for number in range(count)])
    assert [answer.text for answer in answers] == [expected(number) for number in range(count)]


def test_every_request_gets_its_own_answer_whatever_fails() -> None:
    async def act(pool: Pool, *servers: FakeServer) -> None:
        await all_of(pool, 300)
        assert sum(server.served.total() for server in servers) >= 300
        assert pool.in_flight == 0
        assert {"500", "429", "reset", "malformed", "aborted"} <= set(pool.errors)

    ill = Faults(error_500=0.05, busy_429=0.05, reset=0.05, malformed=0.05, aborted=0.05, retry_after=0.02)
    play(act, ill, replace(ill, seed=1))


@pytest.mark.slow
def test_a_dead_servers_work_moves_and_it_is_used_again_when_it_is_back() -> None:
    async def act(pool: Pool, one: FakeServer, two: FakeServer) -> None:
        work = asyncio.create_task(all_of(pool, 200))
        await until(lambda: one.served.total() and pool.endpoints[0].in_flight and pool.waiting)
        await one.stop()
        await work
        assert pool.endpoints[0].breaker.is_open
        before = one.served.total()
        await one.start()
        await until(lambda: not pool.endpoints[0].breaker.is_open)
        await all_of(pool, 100)
        assert one.served.total() > before

    _, report = play(act, Faults(seconds=0.05), Faults(seconds=0.02))
    assert any("left alone" in text for text in report.warnings)


def test_a_server_that_comes_back_with_another_model_stays_out() -> None:
    async def act(pool: Pool, one: FakeServer, two: FakeServer) -> None:
        await one.stop()
        await all_of(pool, 50)
        one.faults.model = "other"
        await one.start()
        before = one.served.total()
        await until(lambda: "serves other now" in pool.endpoints[0].breaker.reason)
        await all_of(pool, 50)
        assert one.served.total() == before

    play(act, Faults(), Faults())


@pytest.mark.slow
def test_a_server_whose_machine_is_gone_lets_its_requests_go() -> None:
    async def act(pool: Pool, gone: FakeServer, _: FakeServer) -> None:
        gone.is_healthy = False
        work = asyncio.create_task(all_of(pool, 40))
        await until(lambda: gone.running)
        pool.endpoints[0].breaker.record_failure("no connection", 0, is_dead=True)  # found out by another request
        await asyncio.wait_for(work, 60)

    play(act, Faults(silent=1.0), Faults())


def test_a_silent_server_is_found_out_and_its_work_moves() -> None:
    async def act(pool: Pool, hung: FakeServer, _: FakeServer) -> None:
        hung.is_healthy = False
        await asyncio.wait_for(all_of(pool, 60), 60)
        assert pool.endpoints[0].breaker.is_open
        assert pool.errors["hang"] > 0

    play(act, Faults(silent=1.0), Faults())


def test_a_slow_but_healthy_server_is_waited_for() -> None:
    async def act(pool: Pool, slow: FakeServer) -> None:
        await all_of(pool, 2)
        assert slow.seen.total() == 2

    play(act, Faults(seconds=1.0), rules=replace(QUICK, health=60.0))


def test_a_request_that_takes_too_long_is_asked_again() -> None:
    async def act(pool: Pool, *_: FakeServer) -> None:
        await all_of(pool, 40)
        assert pool.errors["time-out"] > 0

    play(act, Faults(silent=0.1), Faults(silent=0.1), seconds=0.4)


@pytest.mark.slow
def test_a_slow_server_among_fast_ones_gets_little() -> None:
    async def act(pool: Pool, fast: FakeServer, slow: FakeServer) -> None:
        await all_of(pool, 300)
        assert fast.served.total() > 4 * slow.served.total()

    play(act, Faults(seconds=0.01, places=8), Faults(seconds=0.2, places=2), concurrency=32)


@pytest.mark.slow
def test_retry_after_is_kept() -> None:
    async def act(pool: Pool, server: FakeServer) -> float:
        server.faults.busy_429 = 1.0
        start = asyncio.get_running_loop().time()
        task = asyncio.create_task(pool.ask(ask(0)))
        await until(server.seen.total)
        server.faults.busy_429 = 0.0
        await task
        assert server.seen.total() == 2
        return asyncio.get_running_loop().time() - start

    taken, _ = play(act, Faults(retry_after=1.5))
    assert taken >= 1.5, "a server that does not say when is asked again within a second"


def test_a_server_gets_no_more_than_it_takes() -> None:
    async def act(pool: Pool, server: FakeServer) -> None:
        await all_of(pool, 200)
        assert pool.endpoints[0].limit.places <= 12
        assert pool.errors["429"] < 100

    play(act, Faults(seconds=0.02, places=4, most_waiting=4, tells_load=False, retry_after=0.01))


@pytest.mark.slow
def test_the_servers_own_queue_holds_requests_back() -> None:
    async def act(pool: Pool, server: FakeServer) -> None:
        work = asyncio.create_task(all_of(pool, 300))
        await until(lambda: pool.endpoints[0].limit.is_cautious)
        await until(lambda: pool.endpoints[0].in_flight <= 16)
        assert pool.waiting
        await work

    play(act, Faults(seconds=0.02, places=4), concurrency=256)


@pytest.mark.slow
def test_concurrency_is_kept_over_all_servers() -> None:
    async def act(pool: Pool, *servers: FakeServer) -> None:
        work = asyncio.create_task(all_of(pool, 200))
        while not work.done():
            assert pool.in_flight <= 20
            await asyncio.sleep(0.003)
        await work
        assert max(server.most_running for server in servers) > 4

    play(act, Faults(), Faults(), concurrency=20)


def test_a_wrong_request_is_refused_at_once_and_breaks_nothing() -> None:
    async def act(pool: Pool, server: FakeServer) -> None:
        server.answer = lambda body: {"status": 400, "message": "bad role"}
        for _ in range(10):
            with pytest.raises(Refused, match="bad role"):
                await pool.ask(ask(0))
        assert server.seen.total() == 10
        assert not pool.endpoints[0].breaker.is_open

    play(act, Faults())


def test_a_request_that_always_fails_ends_after_its_attempts() -> None:
    async def act(pool: Pool, server: FakeServer) -> None:
        with pytest.raises(Lost, match="500"):
            await pool.ask(ask(0))
        assert server.seen.total() == 3

    play(act, Faults(error_500=1.0), rules=Rules(attempts=3, tick=0.02, retry_wait=0.01))


def test_the_work_ends_when_no_server_comes_back() -> None:
    async def act(pool: Pool, server: FakeServer) -> None:
        await server.stop()
        with fails("server-error"):
            await all_of(pool, 20)

    play(act, Faults(), rules=Rules(tick=0.02, patience=0.3, retry_wait=0.01))


def test_a_cancelled_request_gives_its_place_back() -> None:
    async def act(pool: Pool, server: FakeServer) -> None:
        tasks = [asyncio.create_task(pool.ask(ask(number))) for number in range(40)]
        await asyncio.sleep(0.05)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert pool.in_flight == 0
        assert not pool.waiting

    play(act, Faults(seconds=0.1), concurrency=8)


def test_a_server_may_be_missing_but_not_all() -> None:
    async def run(addresses: list[str]) -> None:
        async with Pool([Client(address) for address in addresses], Silent(), rules=QUICK) as pool:
            await all_of(pool, 10)

    async def alone() -> None:
        server = FakeServer(Faults())
        await server.start()
        await run([server.address, "127.0.0.1:9"])
        await server.stop()

    asyncio.run(alone())
    with fails("no-server"):
        asyncio.run(run(["127.0.0.1:9", "127.0.0.1:10"]))


def test_servers_of_different_models_are_refused() -> None:
    async def run() -> None:
        one, two = FakeServer(Faults()), FakeServer(Faults(model="other"))
        await one.start()
        await two.start()
        try:
            async with Pool([Client(one.address), Client(two.address)], Silent()):
                pass
        finally:
            await one.stop()
            await two.stop()

    with fails("servers-differ"):
        asyncio.run(run())


def test_what_a_server_says_of_itself() -> None:
    async def run(owner: str) -> tuple[str, str, int | None]:
        server = FakeServer(Faults(owner=owner))
        await server.start()
        async with Client(server.address) as client:
            info = await client.identify()
            assert await client.is_healthy()
        await server.stop()
        with pytest.raises(Unreachable):
            await client.identify()
        return info.kind, info.model, info.context

    assert asyncio.run(run("sglang")) == ("sglang", "fake", 4096)
    assert asyncio.run(run("somebody")) == ("openai", "fake", 4096)


@pytest.mark.parametrize("address", ["here", "a:b", "ftp://a:1", ":80", "a:99999"])
def test_addresses_that_are_none(address: str) -> None:
    with fails("invalid-value", "HOST:PORT"):
        base_url(address)


def test_addresses() -> None:
    assert base_url("10.0.0.1:30000") == "http://10.0.0.1:30000"
    assert base_url("[::1]:30000") == "http://[::1]:30000"
    assert base_url("https://host/api") == "https://host/api"
