"""Replies written in this process, through transformers: for small models and CPUs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from eagle3cli.backends.target.hf import HfTarget, load_target
from eagle3cli.errors import DataError, ModelError
from eagle3cli.runtime.devices import set_threads
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.stop import Stop
from eagle3cli.serving.decode.batches import BatchDecoder, decoding
from eagle3cli.serving.decode.generate import Decoder, Reply
from eagle3cli.serving.reasoning import from_harmony, without_reasoning
from eagle3cli.serving.regenerate.pending import Script
from eagle3cli.serving.regenerate.prompts import Prompts, load_prompts
from eagle3cli.serving.regenerate.shards import Entry, failed
from eagle3cli.serving.sampling import Sampling
from eagle3cli.settings.tables import Settings

TOGETHER = 8192
"""Conversations that are sorted by length together."""


class LocalWriter:
    """The target in this process."""

    def __init__(self, settings: Settings, tools: Tools) -> None:
        self.settings, self.tools = settings, tools
        self.tokens = 0

    def write(
        self, scripts: Iterator[Script], add: Callable[[Entry], None], show: Callable[..., None], stop: Stop
    ) -> None:
        """Give every script's outcome to ``add``, until someone asks to stop; ``show(**notes)`` is told how it goes."""
        begun = time.monotonic()
        while stop.requested is None and (some := list(islice(scripts, TOGETHER))):
            for entry in self._generate(some, stop):
                add(entry)
                show(**{"tokens/s": round(self.tokens / max(1e-9, time.monotonic() - begun), 1)})

    def _generate(self, scripts: list[Script], stop: Stop) -> Iterator[Entry]:
        wanted, tools = self.settings.regenerate, self.tools
        sampling = Sampling(wanted.temperature, wanted.top_p, wanted.top_k, wanted.seed)
        batch = min(wanted.batch_size, len(scripts))
        running = {script.row: script for script in scripts}
        # Rows of similar length run together; the letters are close enough to the tokens to sort by.
        waiting = iter(sorted(scripts, key=lambda script: sum(len(m["content"]) for m in script.prompt())))
        with decoding(tools.target.model, batch, tools.prompts.ends, sampling) as decoder:
            while stop.requested is None:
                while decoder.wants_more and (script := next(waiting, None)) is not None:
                    yield from self._ask(script, decoder)
                if decoder.is_finished:
                    return
                for reply in decoder.step():
                    script = running[reply.index]
                    script.tokens += len(reply.token_ids)
                    self.tokens += len(reply.token_ids)
                    tools.settle(script, reply, keep_reasoning=wanted.is_reasoning_model)
                    yield from self._ask(script, decoder)

    def _ask(self, script: Script, decoder: Decoder | BatchDecoder) -> Iterator[Entry]:
        """Queue the script's next prompt; where there is none, or no room for a reply, the row's outcome."""
        tools = self.tools
        if not script.is_over:
            try:
                prompt = tools.prompts.encode(script)
            except (ModelError, DataError) as error:
                yield failed(script.row, script.line, script.id, error.what)
                return
            room = tools.context - len(prompt)
            if room > 0:
                limit = min(self.settings.regenerate.max_tokens, room)
                decoder.add(script.row, prompt, limit, stream=f"{script.row}:{script.replies}", soon=script.replies > 0)
                return
            if not script.replies:
                reason = f"too long for the context: {len(prompt)} tokens of {tools.context}"
                yield failed(script.row, script.line, script.id, reason)
                return
            script.cut()
        yield Entry(script.row, "generated", script.to_row(), script.tokens)


@dataclass(frozen=True)
class Tools:
    """The target with its tokenizer."""

    target: HfTarget
    prompts: Prompts
    context: int

    def settle(self, script: Script, reply: Reply, *, keep_reasoning: bool) -> None:
        """Write the reply into the script."""
        tokenizer = self.prompts.tokenizer
        ids = reply.token_ids[:-1] if reply.finish == "stop" else reply.token_ids
        said = from_harmony(tokenizer.decode(ids)) if self.prompts.is_harmony else None
        if said is not None:
            script.reply(said.content, reply.finish, reasoning=said.reasoning if keep_reasoning else None)
            return
        text = str(tokenizer.decode(ids, skip_special_tokens=True))
        if not keep_reasoning:
            text = without_reasoning(text, opened=self.prompts.begins_reasoning(script))
        script.reply(text, reply.finish)


def load_tools(settings: Settings, report: Reporter) -> Tools:
    """Load the target and its tokenizer."""
    prompts = load_prompts(settings)
    set_threads(settings.target.threads)
    loaded = load_target(settings.target, report)
    context = int(getattr(loaded.model.config, "max_position_embeddings", 0) or 1 << 30)
    return Tools(loaded, prompts, context)
