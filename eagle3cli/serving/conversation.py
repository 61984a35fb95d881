"""A conversation in which the target replies at some places, and one reply of an engine to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from eagle3cli.data.conversations.messages import Message
from eagle3cli.serving.client.protocol import Answer

KEPT = "kept"
"""The ``finish`` of an assistant message that was not rewritten."""


@dataclass
class OpenConversation:
    """A conversation under way: ``pending`` is still to come (None: the target replies), ``messages`` are settled.

    Example::

        conversation = OpenConversation(0, [{"role": "user", "content": "Hello."}, None])
        while not conversation.is_complete:
            conversation.append_reply(ask(conversation.prompt()), "stop")
    """

    index: int
    """The input row or question."""
    pending: list[Message | None]
    id: str = ""
    line_number: int = 0
    """Where the input row stands in its file, from 1."""
    tools: tuple[Message, ...] = ()
    """Definitions of the tools that the target may call."""
    source: str = ""
    """The data set that it comes from, where its row names one."""
    messages: list[Message] = field(default_factory=list)
    finish: list[str] = field(default_factory=list)
    """How each assistant message ended."""
    replies: int = 0
    """Replies that the target has written."""
    generated_tokens: int = 0
    """Tokens of the replies that were generated now."""
    token_ids: dict[int, list[int]] = field(default_factory=dict)
    """What the target wrote, by the place of its ``finish``."""
    is_cut: bool = False
    """The conversation ends before its time."""
    prompt_opens_reasoning: bool = False
    """The last prompt, as tokenized here, ended inside a block of reasoning."""

    @property
    def is_complete(self) -> bool:
        """Nothing is left for the target to say."""
        return None not in self.pending

    def prompt(self) -> list[Message]:
        """The messages before the next reply."""
        while self.pending and (message := self.pending[0]) is not None:
            del self.pending[0]
            self.messages.append(message)
            if message["role"] == "assistant":
                self.finish.append(KEPT)
        return self.messages

    def append_reply(
        self,
        text: str,
        finish: str,
        *,
        reasoning: str | None = None,
        tool_calls: Sequence[Message] = (),
        token_ids: Sequence[int] | None = None,
    ) -> None:
        """What the target said after :meth:`prompt`; at the end the messages after it are settled too.

        A reply that calls tools ends the conversation: what the tools would have answered is not known.
        """
        assert self.pending[0] is None
        del self.pending[0]
        message: Message = {"role": "assistant", "content": text}
        if reasoning:
            message["reasoning_content"] = reasoning
        if tool_calls:
            message["tool_calls"] = list(tool_calls)
            self.is_cut = bool(self.pending)
            self.pending = []
        self.messages.append(message)
        self.finish.append(finish)
        self.replies += 1
        if token_ids is not None:
            self.token_ids[len(self.finish) - 1] = list(token_ids)
        if self.is_complete:
            self.prompt()

    def cut(self) -> None:
        """End before the question whose reply cannot be written."""
        last = max(i for i, message in enumerate(self.messages) if message["role"] == "assistant")
        del self.messages[last + 1 :]
        self.pending = []
        self.is_cut = True

    def to_row(self) -> dict[str, Any]:
        """The row on disk: ``finish`` says how each assistant message ended, ``truncated`` whether a limit cut a reply
        or the conversation, ``token_ids`` (where known) what the target wrote, None for messages that stand."""
        row: dict[str, Any] = {"id": self.id, "conversations": self.messages, "finish": self.finish}
        row["truncated"] = self.is_cut or "length" in self.finish
        if self.token_ids:
            row["token_ids"] = [self.token_ids.get(place) for place in range(len(self.finish))]
        row |= {"tools": list(self.tools)} if self.tools else {}
        return row | ({"source": self.source} if self.source else {})


@dataclass(frozen=True)
class Response:
    """One measured reply: to which conversation and turn, and everything that the engine told about it."""

    index: int
    turn: int
    prompt: tuple[int, ...]
    answer: Answer
