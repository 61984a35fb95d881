"""Replies written by servers: as many conversations at once as they take, each turn after the replies before it."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from eagle3cli.data.chat.template import template_options
from eagle3cli.errors import DataError, ModelError
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.stop import Stop
from eagle3cli.serving.client.client import Client, Info
from eagle3cli.serving.client.errors import Lost, Refused, TooLong
from eagle3cli.serving.client.monitor import Monitor
from eagle3cli.serving.client.pool import Pool, Rules
from eagle3cli.serving.client.protocol import Answer, Request
from eagle3cli.serving.reasoning import Spoken, from_harmony, without_reasoning
from eagle3cli.serving.regenerate.pending import Script
from eagle3cli.serving.regenerate.prompts import Prompts
from eagle3cli.serving.regenerate.shards import Entry, failed
from eagle3cli.serving.sampling import Sampling
from eagle3cli.settings.tables import Settings

GRACE_SECONDS = 15.0
"""After a stop signal, replies that come within this time are still kept."""


class RemoteWriter:
    """Servers at ``addresses`` that write for scripts.

    ``prompts`` are given where the chat template is ours; without them the servers use their own. ``tend`` is called
    every second (it may restart servers that have died).
    """

    def __init__(
        self,
        settings: Settings,
        addresses: Sequence[str],
        report: Reporter,
        *,
        prompts: Prompts | None = None,
        rules: Rules | None = None,
        tend: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings, self.addresses, self.report = settings, addresses, report
        self.prompts, self.rules, self.tend = prompts, rules or Rules(), tend
        self._is_harmony = False
        self._template_options = template_options(settings.data.chat_template_kwargs)

    def write(
        self, scripts: Iterator[Script], add: Callable[[Entry], None], show: Callable[..., None], stop: Stop
    ) -> None:
        """Give every script's outcome to ``add``, until someone asks to stop; ``show(**notes)`` is told every second
        how things are. Raises Eagle3Error when no server is left."""
        asyncio.run(self._write(scripts, add, show, stop))

    async def _write(
        self, scripts: Iterator[Script], add: Callable[[Entry], None], show: Callable[..., None], stop: Stop
    ) -> None:
        wanted = self.settings.server
        clients = [Client(address, seconds=wanted.request_timeout) for address in self.addresses]

        async def work(pool: Pool) -> None:
            for script in scripts:
                add(await self._one(script, pool))
                if stop.requested is not None:
                    return

        async with Pool(clients, self.report, concurrency=wanted.max_concurrency, rules=self.rules) as pool:
            info = next(server.client.info for server in pool.servers if server.client.info)
            self._is_harmony = info.architecture.startswith("GptOss") or "gpt-oss" in info.model.lower()
            self._compare(info)
            try:
                async with asyncio.TaskGroup() as group:
                    workers = [group.create_task(work(pool)) for _ in range(wanted.max_concurrency)]
                    looking = group.create_task(self._look(Monitor(pool), show, stop, workers))
                    await asyncio.wait(workers)
                    looking.cancel()
            except BaseExceptionGroup as failures:
                raise failures.exceptions[0] from None

    def _compare(self, info: Info) -> None:
        """Warn where the servers' model is not the one that was asked for."""
        asked = self.settings.target.model_path
        if asked and Path(asked).name not in (Path(info.model).name, Path(info.path).name):
            self.report.warn(f"the servers say that their model is {info.model}, which --model-path {asked} is not")

    async def _look(
        self, monitor: Monitor, show: Callable[..., None], stop: Stop, workers: Sequence[asyncio.Task[None]]
    ) -> None:
        """Show how things are; after a stop signal, wait a little and then let go of what is under way."""
        patience = GRACE_SECONDS
        while True:
            await asyncio.sleep(self.rules.tick)
            show(**monitor.notes())
            if stop.requested is None:
                self.tend()
                continue
            patience -= self.rules.tick
            for worker in workers if patience <= 0 else ():
                worker.cancel()

    async def _one(self, script: Script, pool: Pool) -> Entry:
        """The outcome of one row."""
        try:
            while not script.is_over:
                try:
                    self._settle(script, await self._ask(script, pool))
                except TooLong:
                    if not script.replies:
                        raise
                    script.cut()
        except TooLong as long:
            told = f": {long.prompt} tokens of {long.context}" if long.prompt else ""
            return failed(script.row, script.line, script.id, f"too long for the context{told}")
        except Refused as refused:
            return failed(script.row, script.line, script.id, f"the server refuses it ({refused})")
        except Lost as lost:
            reason = f"no answer after {self.rules.attempts} attempts ({lost})"
            return failed(script.row, script.line, script.id, reason)
        except (ModelError, DataError) as error:
            return failed(script.row, script.line, script.id, error.what)
        return Entry(script.row, "generated", script.to_row(), script.tokens)

    async def _ask(self, script: Script, pool: Pool) -> Answer:
        """The next reply, shorter than wanted where the context has no room for more; raises TooLong without any."""
        request = self._request(script)
        try:
            return await pool.ask(request)
        except TooLong as long:
            if long.room is None or not 0 < long.room < request.max_tokens:
                raise
            return await pool.ask(request.shortened(long.room))

    def _request(self, script: Script) -> Request:
        wanted = self.settings.regenerate
        stream = hashlib.blake2b(f"{wanted.seed}:{script.row}:{script.replies}".encode(), digest_size=4)
        seed = int.from_bytes(stream.digest(), "big") >> 1
        sampling = Sampling(wanted.temperature, wanted.top_p, wanted.top_k, seed)
        if self.prompts is not None:
            ids, ends = tuple(self.prompts.encode(script)), tuple(sorted(self.prompts.ends))
            return Request(
                wanted.max_tokens,
                input_ids=ids,
                sampling=sampling,
                stop_token_ids=ends,
                special_tokens=self._is_harmony,
            )
        return Request(
            wanted.max_tokens,
            tuple(script.prompt()),
            sampling=sampling,
            tools=script.tools,
            reasoning_effort=wanted.reasoning_effort,
            template_options=self._template_options,
            special_tokens=self._is_harmony,
        )

    def _settle(self, script: Script, answer: Answer) -> None:
        """Write the answer into the script."""
        said = Spoken(answer.text, answer.reasoning)
        if said.reasoning is None and self._is_harmony:
            said = from_harmony(answer.text) or said
        if not self.settings.regenerate.is_reasoning_model:
            opened = self.prompts is not None and self.prompts.begins_reasoning(script)
            said = Spoken(said.content if said.reasoning else without_reasoning(said.content, opened=opened))
        script.tokens += answer.tokens
        script.reply(
            said.content,
            answer.finish,
            reasoning=said.reasoning,
            tool_calls=answer.tool_calls,
            token_ids=answer.token_ids,
        )
