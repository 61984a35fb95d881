"""Replies written in this process, through transformers: for small models and CPUs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice

from eagle3cli.backends.target.hf import load_target
from eagle3cli.errors import DataError, ModelError, reason_of
from eagle3cli.models.sampling import Sampling
from eagle3cli.runtime.devices import set_threads
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.stop import Stop
from eagle3cli.serving.chat_tokenizer import load_chat_tokenizer
from eagle3cli.serving.conversation import OpenConversation
from eagle3cli.serving.decode.batches import BatchDecoder, decoding
from eagle3cli.serving.decode.generate import Decoder, Sequence
from eagle3cli.serving.engine import context_length
from eagle3cli.serving.regenerate.shards import AddOutcome, RowOutcome, ShowNotes, failed
from eagle3cli.settings.tables import Settings

SORTED_TOGETHER = 8192
"""Conversations that are sorted by length together."""


class LocalGenerator:
    """The target in this process, loaded here."""

    def __init__(self, settings: Settings, report: Reporter) -> None:
        self.config = settings.regenerate
        self.tokenizer = load_chat_tokenizer(settings, reasoning_effort=self.config.reasoning_effort, images=True)
        set_threads(settings.target.threads)
        target = load_target(settings.target, report)
        self.model = target.model
        self.reader = target.reader
        self.context = context_length(self.model)
        self.tokens = 0

    def generate(self, conversations: Iterator[OpenConversation], add: AddOutcome, show: ShowNotes, stop: Stop) -> None:
        """Give every conversation's outcome to ``add``, until someone asks to stop; ``show(**notes)`` as it goes."""
        start = time.monotonic()
        while stop.requested is None and (chunk := list(islice(conversations, SORTED_TOGETHER))):
            for outcome in self._generate(chunk, show, stop):
                add(outcome)
                show(**{"tokens/s": round(self.tokens / max(1e-9, time.monotonic() - start), 1)})

    def _generate(self, conversations: list[OpenConversation], show: ShowNotes, stop: Stop) -> Iterator[RowOutcome]:
        config = self.config
        sampling = Sampling(config.temperature, config.top_p, config.top_k, config.seed)
        batch = min(config.batch_size, len(conversations))
        by_index = {conversation.index: conversation for conversation in conversations}
        # Rows of similar length run together; the letters are close enough to the tokens to sort by.
        queue = iter(sorted(conversations, key=lambda one: sum(len(m["content"]) for m in one.prompt())))
        with decoding(self.model, batch, self.tokenizer.eos_ids, sampling, self.reader) as decoder:
            while stop.requested is None:
                while decoder.wants_more and (conversation := next(queue, None)) is not None:
                    yield from self._enqueue(conversation, decoder)
                if decoder.is_finished:
                    return
                for reply in decoder.step():
                    conversation = by_index[reply.index]
                    if reply.error:
                        yield failed(conversation.index, conversation.line_number, conversation.id, reply.error)
                        continue
                    self._append(conversation, reply)
                    yield from self._enqueue(conversation, decoder)
                show(under_way=sum(len(one.token_ids) / one.max_tokens for one in decoder.running if one is not None))

    def _enqueue(self, conversation: OpenConversation, decoder: Decoder | BatchDecoder) -> Iterator[RowOutcome]:
        """Queue the next prompt; where there is none, or no room for a reply, the row's outcome."""
        if not conversation.is_complete:
            identity = (conversation.index, conversation.line_number, conversation.id)
            try:
                prompt = self.tokenizer.encode(conversation)
            except (ModelError, DataError) as error:
                yield failed(*identity, reason_of(error))
                return
            room = self.context - len(prompt)
            replies = conversation.replies
            if room > 0:
                limit = min(self.config.max_tokens, room)
                stream = f"{conversation.index}:{replies}"
                decoder.add(conversation.index, prompt, limit, stream=stream, soon=replies > 0)
                return
            if not replies:
                yield failed(*identity, f"too long for the context: {len(prompt)} tokens of {self.context}")
                return
            conversation.cut()
        yield RowOutcome(conversation.index, "generated", conversation.to_row(), conversation.generated_tokens)

    def _append(self, conversation: OpenConversation, reply: Sequence) -> None:
        self.tokens += len(reply.token_ids)
        conversation.generated_tokens += len(reply.token_ids)
        parsed = self.tokenizer.parse_reply(
            reply.token_ids[:-1] if reply.finish == "stop" else reply.token_ids,
            keep_reasoning=self.config.is_reasoning_model,
            opened=conversation.prompt_opens_reasoning,
        )
        conversation.append_reply(parsed.content, reply.finish, reasoning=parsed.reasoning)
