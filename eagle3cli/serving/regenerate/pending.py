"""A conversation as a script: which messages stand, and where the target speaks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from eagle3cli.data.conversations.conversation import Conversation, join_runs
from eagle3cli.data.conversations.messages import Message
from eagle3cli.data.conversations.system_prompt import with_system
from eagle3cli.errors import DataError

KEPT = "kept"
"""The ``finish`` of an assistant message that was not rewritten."""


@dataclass
class Script:
    """One conversation on its way: ``lines`` are still to come (None: the target speaks), ``messages`` are settled."""

    row: int
    id: str
    lines: list[Message | None]
    messages: list[Message] = field(default_factory=list)
    finish: list[str] = field(default_factory=list)
    replies: int = 0
    """Replies that the target has written."""
    tokens: int = 0
    """Tokens of the replies that were generated now."""
    line: int = 0
    """Where the input row stands in its file, from 1."""
    tools: tuple[Message, ...] = ()
    """Definitions of the tools that the target may call."""
    token_ids: dict[int, list[int]] = field(default_factory=dict)
    """What the target wrote, by the place of its ``finish``."""
    is_cut: bool = False
    """The conversation ends before its time."""

    @property
    def is_over(self) -> bool:
        """Nothing is left for the target to say."""
        return None not in self.lines

    def prompt(self) -> list[Message]:
        """The messages before the next reply."""
        while self.lines and self.lines[0] is not None:
            message = self.lines.pop(0)
            assert message is not None
            self.messages.append(message)
            if message["role"] == "assistant":
                self.finish.append(KEPT)
        return self.messages

    def reply(
        self,
        text: str,
        finish: str,
        *,
        reasoning: str | None = None,
        tool_calls: Sequence[Message] = (),
        token_ids: Sequence[int] | None = None,
    ) -> None:
        """What the target said after :meth:`prompt`; at the end the messages after it are settled too.

        A reply that calls tools ends the script: what the tools would have answered is not known.
        """
        assert self.lines[0] is None
        self.lines.pop(0)
        message: Message = {"role": "assistant", "content": text}
        if reasoning:
            message["reasoning_content"] = reasoning
        if tool_calls:
            message["tool_calls"] = list(tool_calls)
            self.is_cut = bool(self.lines)
            self.lines = []
        self.messages.append(message)
        self.finish.append(finish)
        self.replies += 1
        if token_ids is not None:
            self.token_ids[len(self.finish) - 1] = list(token_ids)
        if self.is_over:
            self.prompt()

    def cut(self) -> None:
        """End before the question whose reply cannot be written."""
        last = max(i for i, message in enumerate(self.messages) if message["role"] == "assistant")
        del self.messages[last + 1 :]
        self.lines, self.is_cut = [], True

    def to_row(self) -> dict[str, Any]:
        """The row on disk: ``finish`` says how each assistant message ended, ``truncated`` whether a limit cut a reply
        or the conversation, ``token_ids`` (where known) what the target wrote, None for messages that stand."""
        row: dict[str, Any] = {"id": self.id, "conversations": self.messages, "finish": self.finish}
        row["truncated"] = self.is_cut or "length" in self.finish
        if self.token_ids:
            row["token_ids"] = [self.token_ids.get(place) for place in range(len(self.finish))]
        return {**row, "tools": list(self.tools)} if self.tools else row


def write_script(
    row: int, conversation: Conversation, turns: Literal["last", "all"], system_prompt: str | None = None
) -> Script:
    """The script in which the last or every reply is rewritten; a question that has none gets a reply.

    Messages with tool calls stand: the tool's answers after them belong to these very calls. Raises DataError where
    there is nothing to write.
    """
    messages = list(join_runs(conversation).messages)
    if system_prompt is not None:
        messages = with_system(messages, system_prompt)
    spoken = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if turns == "last":
        spoken = spoken[-1:] if messages[-1]["role"] == "assistant" else []
    lines: list[Message | None] = []
    for i, message in enumerate(messages):
        lines.append(None if i in spoken and not message.get("tool_calls") else message)
        after = messages[i + 1]["role"] if i + 1 < len(messages) else None
        if message["role"] != "assistant" and (after is None or message["role"] == after == "user"):
            lines.append(None)
    if None not in lines:
        raise DataError("no reply to rewrite: the assistant's turns are tool calls")
    return Script(row, conversation.id, lines, tools=conversation.tools)
