"""Replies written by servers: as many conversations at once as they take, each turn after the replies before it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from eagle3cli.data.chat.template import template_options
from eagle3cli.data.conversations.images import as_data_urls
from eagle3cli.errors import DataError, ModelError, reason_of
from eagle3cli.models.sampling import Sampling
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.stop import Stop
from eagle3cli.serving.chat_tokenizer import ChatTokenizer
from eagle3cli.serving.client.client import Client, Info
from eagle3cli.serving.client.errors import Lost, Refused, TooLong
from eagle3cli.serving.client.monitor import Monitor
from eagle3cli.serving.client.pool import Pool, Rules
from eagle3cli.serving.client.protocol import Answer, Request
from eagle3cli.serving.conversation import OpenConversation
from eagle3cli.serving.reasoning import ParsedReply, from_harmony, without_reasoning
from eagle3cli.serving.regenerate.shards import AddOutcome, RowOutcome, ShowNotes, failed
from eagle3cli.serving.sampling import stream_seed
from eagle3cli.settings.tables import Settings

GRACE_SECONDS = 15.0
"""After a stop signal, replies that come within this time are still kept."""


class RemoteGenerator:
    """Servers at ``addresses`` that generate replies.

    The ``tokenizer`` is given where the chat template is ours; without it the servers use their own.
    ``restart`` is called every second: it starts servers again that have died.
    """

    def __init__(
        self,
        settings: Settings,
        addresses: Sequence[str],
        report: Reporter,
        *,
        tokenizer: ChatTokenizer | None = None,
        rules: Rules | None = None,
        restart: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings = settings
        self.addresses = addresses
        self.report = report
        self.tokenizer = tokenizer
        self.rules = rules or Rules()
        self.restart = restart
        self._is_harmony = False
        self._open = 0
        """Rows under way."""
        self._template_options = template_options(settings.data.chat_template_kwargs)

    def generate(self, conversations: Iterator[OpenConversation], add: AddOutcome, show: ShowNotes, stop: Stop) -> None:
        """Give every conversation's outcome to ``add``, until someone asks to stop; ``show(**notes)`` every second.

        Raises Eagle3Error when no server is left.
        """
        asyncio.run(self._run(conversations, add, show, stop))

    async def _run(
        self, conversations: Iterator[OpenConversation], add: AddOutcome, show: ShowNotes, stop: Stop
    ) -> None:
        server = self.settings.server
        clients = [Client(address, seconds=server.request_timeout) for address in self.addresses]

        async def work(pool: Pool) -> None:
            for conversation in conversations:
                self._open += 1
                add(await self._complete(conversation, pool))
                self._open -= 1
                if stop.requested is not None:
                    return

        async with Pool(clients, self.report, concurrency=server.max_concurrency, rules=self.rules) as pool:
            info = next(endpoint.client.info for endpoint in pool.endpoints if endpoint.client.info)
            self._is_harmony = info.architecture.startswith("GptOss") or "gpt-oss" in info.model.lower()
            self._check_model(info)
            try:
                async with asyncio.TaskGroup() as group:
                    workers = [group.create_task(work(pool)) for _ in range(server.max_concurrency)]
                    watching = group.create_task(self._watch(Monitor(pool), show, stop, workers))
                    await asyncio.wait(workers)
                    watching.cancel()
            except BaseExceptionGroup as errors:
                raise errors.exceptions[0] from None

    def _check_model(self, info: Info) -> None:
        """Warn where the servers' model is not the one that was asked for."""
        path = self.settings.target.model_path
        if path and _stem(path) not in (_stem(info.model), _stem(info.path)):
            self.report.warn(f"the servers say that their model is {info.model}, which --model-path {path} is not")

    async def _watch(
        self, monitor: Monitor, show: ShowNotes, stop: Stop, workers: Sequence[asyncio.Task[None]]
    ) -> None:
        """Show how things are; after a stop signal, wait a little and then let go of what is under way."""
        patience = GRACE_SECONDS
        while True:
            await asyncio.sleep(self.rules.tick)
            show(under_way=self._open / 2, **monitor.notes())  # some have just begun, some are nearly done
            if stop.requested is None:
                self.restart()
                continue
            patience -= self.rules.tick
            for worker in workers if patience <= 0 else ():
                worker.cancel()

    async def _complete(self, conversation: OpenConversation, pool: Pool) -> RowOutcome:
        """The outcome of one row."""
        try:
            while not conversation.is_complete:
                try:
                    self._append(conversation, await self._ask(conversation, pool))
                except TooLong:
                    if not conversation.replies:
                        raise
                    conversation.cut()
        except TooLong as error:
            lengths = f": {error.prompt} tokens of {error.context}" if error.prompt else ""
            reason = f"too long for the context{lengths}"
        except Refused as error:
            reason = f"the server refuses it ({error})"
        except Lost as error:
            reason = f"no answer after {self.rules.attempts} attempts ({error})"
        except (ModelError, DataError) as error:
            reason = reason_of(error)
        else:
            return RowOutcome(conversation.index, "generated", conversation.to_row(), conversation.generated_tokens)
        return failed(conversation.index, conversation.line_number, conversation.id, reason)

    async def _ask(self, conversation: OpenConversation, pool: Pool) -> Answer:
        """The next reply, shorter than asked where the context has no room for more; raises TooLong without any."""
        request = self._request(conversation)
        try:
            return await pool.ask(request)
        except TooLong as error:
            if error.room is None or not 0 < error.room < request.max_tokens:
                raise
            return await pool.ask(replace(request, max_tokens=error.room))

    def _request(self, conversation: OpenConversation) -> Request:
        config = self.settings.regenerate
        seed = stream_seed(f"{config.seed}:{conversation.index}:{conversation.replies}")
        request = Request(
            config.max_tokens,
            sampling=Sampling(config.temperature, config.top_p, config.top_k, seed),
            special_tokens=self._is_harmony,
        )
        if self.tokenizer is not None:
            eos_ids = tuple(sorted(self.tokenizer.eos_ids))
            return replace(request, input_ids=tuple(self.tokenizer.encode(conversation)), stop_token_ids=eos_ids)
        return replace(
            request,
            messages=tuple(as_data_urls(conversation.prompt())),
            tools=conversation.tools,
            reasoning_effort=config.reasoning_effort,
            template_options=self._template_options,
        )

    def _append(self, conversation: OpenConversation, answer: Answer) -> None:
        reply = ParsedReply(answer.text, answer.reasoning)
        if reply.reasoning is None and self._is_harmony:
            reply = from_harmony(answer.text) or reply
        if not self.settings.regenerate.is_reasoning_model:
            opened = conversation.prompt_opens_reasoning
            reply = ParsedReply(reply.content if reply.reasoning else without_reasoning(reply.content, opened=opened))
        conversation.generated_tokens += answer.tokens
        conversation.append_reply(
            reply.content,
            answer.finish,
            reasoning=reply.reasoning,
            tool_calls=answer.tool_calls,
            token_ids=answer.token_ids,
        )


def _stem(name: str) -> str:
    """A model's name without its folder, and without what a .gguf file adds to it."""
    return re.sub(r"(-(BF16|F32|F16))?(\.gguf)?$", "", Path(name).name)
