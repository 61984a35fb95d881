"""One server's client: connections are kept and used again."""

from __future__ import annotations

import asyncio
from typing import Any

from eagle3cli.serving.client.client import Client
from eagle3cli.serving.client.protocol import Request
from tests.serving.client.fake_server import FakeServer


class Counting(FakeServer):
    """Counts the connections that were made to it."""

    connections = 0

    async def _connection(self, *streams: Any) -> None:
        self.connections += 1
        await super()._connection(*streams)


def test_requests_one_after_the_other_share_a_connection() -> None:
    async def run() -> int:
        server = Counting()
        await server.start()
        client = Client(server.address, seconds=60)
        for number in range(4):
            await client.ask(Request(10, [{"role": "user", "content": str(number)}]))
        await client.aclose()
        await server.stop()
        return server.connections

    assert asyncio.run(run()) == 1
