"""Servers in the benchmark: as many replies under way as the batch says, every token timed as it arrives."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any, TypeVar

from eagle3cli.data.conversations.images import as_data_urls
from eagle3cli.data.images.tokens import ImageTokens
from eagle3cli.errors import Eagle3Error
from eagle3cli.models.sampling import Sampling
from eagle3cli.serving.bench.logit_margin import logit_margin_of, logprobs_request, read_logprobs
from eagle3cli.serving.bench.rounds import parts
from eagle3cli.serving.bench.session import Advance, Hook, Measurement, MeasureOptions
from eagle3cli.serving.chat_tokenizer import ChatTokenizer
from eagle3cli.serving.client.client import Client, Info
from eagle3cli.serving.client.errors import RequestFailed
from eagle3cli.serving.client.protocol import Acceptance, Request, ServerKind
from eagle3cli.serving.conversation import OpenConversation, Response

T = TypeVar("T")
CHECK_SECONDS = 0.5
PROBE_TOKENS = 64
MOST_ROUNDS = 3
LEAST_BATCHES = 4
"""Of replies in a round."""
SPARE = 64
"""Tokens of the context that servers may keep for drafts."""
NOT_SAMPLES: dict[ServerKind, str] = {
    "sglang": "SGLang on a CPU verifies drafts greedily at any temperature: with a draft these answers are not samples "
    "of the target; use --engine local for exact speculative sampling",
    "vllm": "vLLM on a CPU writes nonsense with a draft at a temperature: neither these answers nor their acceptance "
    "are the target's; use --engine local for exact speculative sampling",
}
"""Why answers at a temperature with a draft are not samples of the target, on a CPU."""


@dataclass
class ServerEngine:
    """One server, with the speculation that it was started with."""

    address: str
    info: Info
    tokenizer: ChatTokenizer
    seconds: float
    """Longest time for one request."""
    notes: tuple[str, ...] = ()
    drafting: str = ""
    tie_limit: float = 0.25
    on_cpu: bool = False
    context: int = field(init=False)

    def __post_init__(self) -> None:
        self.context = (self.info.context or 1 << 30) - SPARE

    @property
    def facts(self) -> dict[str, Any]:
        """What the server says of itself, and what it was started with."""
        return {
            **{"engine": self.info.kind, "engine_version": self.info.version, "dtype": self.info.dtype},
            "device": "cpu" if self.on_cpu else "",
        }

    def warm_up(self, prompt: Sequence[int], options: MeasureOptions, times: int, check: Hook) -> None:
        """As many requests at once as will be measured, of a prompt that will not."""
        request = self._request(tuple(prompt), options.max_tokens, Sampling())

        async def ask(client: Client) -> None:
            for _ in range(times):
                check()
                await asyncio.gather(*[client.ask(request, stream=True) for _ in range(options.config.batch)])
            if self.info.kind == "sglang":
                with suppress(RequestFailed):  # every measurement begins without cached prompts
                    await client.post("/flush_cache")

        self._run(ask)

    def rounds(self, conversations: Sequence[OpenConversation], batch: int) -> list[list[int]]:
        """At most three, each long enough that its end, when fewer replies are under way, weighs little."""
        count = len(conversations)
        return parts(range(count), max(-(-count // MOST_ROUNDS), LEAST_BATCHES * batch))

    def measure(
        self, conversations: Sequence[OpenConversation], options: MeasureOptions, advance: Advance, check: Hook
    ) -> Measurement:
        """Every worker takes the next conversation and goes through its turns. Raises Eagle3Error for a lost request: a
        measurement with a gap in it is none."""
        return self._run(lambda client: self._measure(client, conversations, options, advance, check))

    async def _measure(
        self,
        client: Client,
        conversations: Sequence[OpenConversation],
        options: MeasureOptions,
        advance: Advance,
        check: Hook,
    ) -> Measurement:
        measurement = Measurement()
        queue = deque(conversations)
        # The first prompts cost no time that is measured.
        first_requests = {conversation.index: self._asked(conversation, options) for conversation in conversations}

        busy = options.config.batch

        async def work() -> None:
            nonlocal busy
            while queue:
                conversation = queue.popleft()
                prompt, request = first_requests[conversation.index]
                while True:
                    answer = await client.ask(request, stream=self._streams(request))
                    measurement.responses.append(Response(conversation.index, conversation.replies, prompt, answer))
                    ids = answer.token_ids
                    content = answer.text if ids is None else self.tokenizer.parse_reply(ids).content
                    conversation.append_reply(content, answer.finish)
                    advance(under_way=busy / 2)  # some replies have just begun, some are nearly done
                    if conversation.is_complete:
                        break
                    prompt, request = self._asked(conversation, options)
            busy -= 1

        async def check_again() -> None:
            while True:
                await asyncio.sleep(CHECK_SECONDS)
                check()

        before = await self._counters(client)
        began = perf_counter()
        try:
            async with asyncio.TaskGroup() as group:
                workers = [group.create_task(work()) for _ in range(options.config.batch)]
                checks = group.create_task(check_again())
                await asyncio.wait(workers)
                checks.cancel()
        except BaseExceptionGroup as failures:
            raise failures.exceptions[0] from None
        measurement.seconds = perf_counter() - began
        after = await self._counters(client)
        if not any(response.answer.acceptance for response in measurement.responses):
            measurement.acceptance = after - before if before and after else None
        return measurement

    def _asked(self, conversation: OpenConversation, options: MeasureOptions) -> tuple[tuple[int, ...], Request]:
        """The next prompt, and the request for the reply to it: by its tokens, by messages where it has images."""
        prompt = self.tokenizer.encode(conversation)
        request = self._request(tuple(prompt), options.max_tokens, options.sampling(conversation))
        if isinstance(prompt, ImageTokens):
            messages = tuple(as_data_urls(conversation.prompt()))
            template_options = self.tokenizer.chat.options
            request = replace(request, input_ids=(), messages=messages, template_options=template_options)
        return tuple(prompt), request

    def _streams(self, request: Request) -> bool:
        """Whether the times of tokens are asked for: SGLang tells tokens and counters of a chat in whole answers."""
        return not (request.messages and self.info.kind == "sglang")

    def logit_margin(self, prompt: Sequence[int], one: int, other: int) -> float | None:
        """The server is asked for the probabilities of the token after ``prompt``; none is of one with images."""
        if isinstance(prompt, ImageTokens):
            return None
        return logit_margin_of(self.likely_tokens(prompt), one, other)

    def likely_tokens(self, prompt: Sequence[int]) -> dict[int, float] | None:
        """The likeliest tokens after ``prompt`` with their log-probabilities; None where the server does not say."""
        path, body = logprobs_request(prompt, self.info)
        with suppress(Eagle3Error):
            return read_logprobs(path, self._run(lambda client: client.call(path, body)))
        return None

    def tokens_of(self, text: str) -> list[int] | None:
        """The server's own tokens of a text; None where it does not say."""
        return self._run(lambda client: client.tokenize(text))

    def _request(self, prompt: tuple[int, ...], max_tokens: int, sampling: Sampling) -> Request:
        limit = max(1, min(max_tokens, self.context - len(prompt)))
        ends = tuple(sorted(self.tokenizer.eos_ids))
        return Request(limit, input_ids=prompt, sampling=sampling, stop_token_ids=ends)

    async def _counters(self, client: Client) -> Acceptance | None:
        """vLLM's counters; SGLang tells with every reply, and so does a vLLM that was started to."""
        return await client.acceptance() if self.info.kind == "vllm" else None

    def _run(self, act: Callable[[Client], Coroutine[Any, Any, T]]) -> T:
        async def run() -> T:
            async with Client(self.address, seconds=self.seconds) as client:
                client.info = self.info
                return await act(client)

        try:
            return asyncio.run(run())
        except RequestFailed as failure:
            raise Eagle3Error("server-error", f"the server failed: {failure}", where=self.address) from failure


async def _llamacpp_speculation(client: Client) -> tuple[int, int, int] | None:
    """Steps, top-k and draft tokens of a llama.cpp's speculation, seen in an answer: it tells them nowhere."""
    answer = await client.ask(Request(PROBE_TOKENS, input_ids=(1, 2, 3), ignore_end=True))
    counted = answer.acceptance
    if counted is None or not counted.passes:
        return None
    steps = -(-counted.proposed // counted.passes)  # in the last passes it proposes no more than are wanted
    return steps, 1, steps + 1


def connect(
    address: str,
    tokenizer_of: Callable[[Info], ChatTokenizer],
    seconds: float,
    dtype: str = "",
    *,
    on_cpu: bool | None = None,
) -> ServerEngine:
    """A server that runs, and what a reader of its numbers has to know.

    ``dtype`` and ``on_cpu`` are what it was started with, where that is known; else it is asked. Raises Eagle3Error
    where none answers.
    """

    async def identify() -> Info:
        async with Client(address) as client:
            info = await client.identify()
            if info.kind == "llama.cpp":
                return replace(info, speculative=await _llamacpp_speculation(client))
            if info.kind == "vllm" and (counters := await client.acceptance()) is not None:
                if not counters.positions:  # it tells them once something was decoded
                    await client.ask(Request(4, input_ids=(1, 2, 3)))
                    counters = await client.acceptance() or counters
                steps = len(counters.positions)
                info = replace(info, speculative=(steps, 1, steps + 1) if steps else None)
            return info

    try:
        info = asyncio.run(identify())
    except RequestFailed as failure:
        fix = "start the server first, or leave the address out and this command starts one"
        raise Eagle3Error("no-server", f"does not answer: {failure}", where=address, fix=fix) from failure
    info = replace(info, dtype=dtype or info.dtype)
    on_cpu = info.on_cpu if on_cpu is None else on_cpu
    notes = (NOT_SAMPLES[info.kind],) if on_cpu and info.speculative and info.kind in NOT_SAMPLES else ()
    return ServerEngine(address, info, tokenizer_of(info), seconds, notes, on_cpu=on_cpu)
