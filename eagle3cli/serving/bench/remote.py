"""Servers in the benchmark: as many answers under way as the batch says, every token timed as it arrives."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, TypeVar

from eagle3cli.errors import Eagle3Error
from eagle3cli.serving.bench.session import Heard, Measured, Talk, Voice, Wanted
from eagle3cli.serving.bench.ties import margin_body, read_margin
from eagle3cli.serving.client.client import Client, Info
from eagle3cli.serving.client.errors import RequestFailed
from eagle3cli.serving.client.protocol import Acceptance, Request
from eagle3cli.serving.sampling import Sampling

T = TypeVar("T")
LOOK_SECONDS = 0.5
SPARE = 64
"""Tokens of the context that servers may keep for drafts."""
ARGMAX = (
    "SGLang on a CPU verifies drafts greedily at any temperature: with a draft these answers are not samples of the "
    "target; use --engine local for exact speculative sampling"
)


@dataclass
class RemoteSpeaker:
    """One server, with the speculation that it was started with."""

    address: str
    info: Info
    voice: Voice
    seconds: float
    notes: tuple[str, ...] = ()
    tie: float = 0.25
    context: int = field(init=False)

    def __post_init__(self) -> None:
        self.context = (self.info.context or 1 << 30) - SPARE

    def warm_up(self, prompt: Sequence[int], wanted: Wanted, times: int) -> None:
        """As many requests at once as will be measured, of a prompt that will not."""

        async def ask(client: Client) -> None:
            request = self._request(tuple(prompt), wanted, 0.0, 0)
            for _ in range(times):
                await asyncio.gather(*[client.ask(request, stream=True) for _ in range(wanted.config.batch)])
            if self.info.kind == "sglang":
                with suppress(RequestFailed):  # every measurement begins without cached prompts
                    await client.post("/flush_cache")

        self._run(ask)

    def measure(
        self, talks: Sequence[Talk], wanted: Wanted, advance: Callable[[], None], check: Callable[[], None]
    ) -> Measured:
        """Every worker takes the next talk and goes through its turns. Raises Eagle3Error for a lost request: a
        measurement with a gap in it is none."""
        return self._run(lambda client: self._measure(client, talks, wanted, advance, check))

    async def _measure(
        self,
        client: Client,
        talks: Sequence[Talk],
        wanted: Wanted,
        advance: Callable[[], None],
        check: Callable[[], None],
    ) -> Measured:
        found, waiting = Measured(), deque(talks)
        prompts = {talk.number: talk.ask(self.voice) for talk in talks}  # the first ones cost no time that is measured

        async def work() -> None:
            while waiting:
                talk = waiting.popleft()
                while not talk.is_over:
                    prompt = tuple(prompts.pop(talk.number) if talk.number in prompts else talk.ask(self.voice))
                    sampling = wanted.sampling(talk)
                    request = self._request(prompt, wanted, sampling.temperature, sampling.seed)
                    answer = await client.ask(request, stream=True)
                    found.heard.append(Heard(talk.number, talk.turn, prompt, answer))
                    ids = answer.token_ids
                    talk.hear(answer.text if ids is None else self.voice.spoken(ids))
                    advance()

        async def look() -> None:
            while True:
                await asyncio.sleep(LOOK_SECONDS)
                check()

        before = await self._counters(client)
        begun = perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                workers = [group.create_task(work()) for _ in range(wanted.config.batch)]
                looking = group.create_task(look())
                await asyncio.wait(workers)
                looking.cancel()
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        found.seconds = perf_counter() - begun
        after = await self._counters(client)
        found.acceptance = after - before if before and after else None
        return found

    def margin(self, prompt: Sequence[int], one: int, other: int) -> float | None:
        """The server is asked for the probabilities of the token after ``prompt``."""

        async def ask(client: Client) -> float | None:
            path, body = margin_body(prompt, self.info)
            return read_margin(path, await client.call(path, body), one, other)

        with suppress(Eagle3Error):
            return self._run(ask)
        return None

    def _request(self, prompt: tuple[int, ...], wanted: Wanted, temperature: float, seed: int) -> Request:
        limit = max(1, min(wanted.max_tokens, self.context - len(prompt)))
        sampling = Sampling(temperature, seed=seed)
        ends = tuple(sorted(self.voice.ends))
        return Request(limit, input_ids=prompt, sampling=sampling, stop_token_ids=ends)

    async def _counters(self, client: Client) -> Acceptance | None:
        """vLLM's counters; SGLang tells with every answer."""
        return await client.acceptance() if self.info.kind == "vllm" else None

    def _run(self, act: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
        async def run() -> T:
            async with Client(self.address, seconds=self.seconds) as client:
                client.info = self.info
                return await act(client)

        try:
            return asyncio.run(run())
        except RequestFailed as failure:
            raise Eagle3Error(f"the server failed: {failure}", where=self.address) from failure


def meet(address: str, voice_of: Callable[[Info], Voice], seconds: float) -> RemoteSpeaker:
    """A server that runs, and what a reader of its numbers has to know. Raises Eagle3Error where none answers."""

    async def ask() -> tuple[Info, bool]:
        async with Client(address) as client:
            info = await client.identify()
            on_cpu = info.kind == "sglang" and (await client.get("/get_server_info")).get("device") == "cpu"
            if info.kind == "vllm" and (told := await client.acceptance()) is not None:
                if not told.positions:  # it tells them once something was decoded
                    await client.ask(Request(4, input_ids=(1, 2, 3)))
                    told = await client.acceptance() or told
                steps = len(told.positions)
                info = replace(info, speculative=(steps, 1, steps + 1) if steps else None)
            return info, on_cpu

    try:
        info, on_cpu = asyncio.run(ask())
    except RequestFailed as failure:
        fix = "start the server first, or leave the address out and this command starts one"
        raise Eagle3Error(f"does not answer: {failure}", where=address, fix=fix) from failure
    return RemoteSpeaker(address, info, voice_of(info), seconds, (ARGMAX,) if on_cpu and info.speculative else ())
