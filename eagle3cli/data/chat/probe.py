"""A conversation that a chat template is asked about, and where in its rendering the messages stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from eagle3cli.data.chat.format import Format
from eagle3cli.data.chat.placeholders import Span
from eagle3cli.data.chat.template import Chat, Messages, Tools
from eagle3cli.errors import DataError


@dataclass(frozen=True)
class Probe:
    """A conversation, or the part of one that a server shows, and its template."""

    chat: Chat
    messages: Messages
    tools: Tools
    form: Format
    add_generation_prompt: bool = False
    """A reply's header follows the last message."""

    def render(self, messages: Messages | None = None) -> str:
        """This conversation as text, or other messages in its stead."""
        return self.chat.render(self.messages if messages is None else messages, self.add_generation_prompt, self.tools)

    def before(self, index: int) -> Probe:
        """What a server shows before message ``index``."""
        return replace(self, messages=self.messages[:index], add_generation_prompt=True)


@dataclass
class MessageSpans:
    """Character spans by message index."""

    replies: dict[int, Span]
    """Replies, without their end token."""
    others: dict[int, Span]
    """Contents of all other messages."""
    problems: dict[int, DataError] = field(default_factory=dict)
    """Why a reply is not among them that the template shows."""

    def checked(self) -> MessageSpans:
        """The same; raises the first problem."""
        for problem in self.problems.values():
            raise problem
        return self

    def end_of(self, index: int, text: str, form: Format) -> int:
        """Where reply ``index`` ends in ``text``, its end token included."""
        end = self.replies[index][1]
        after = form.end_at(text, end)
        if after > end:
            return after
        starts = [start for start, _ in (*self.replies.values(), *self.others.values()) if start >= end]
        return form.stop_before(text, end, min(starts, default=len(text)))


def is_empty(message: Mapping[str, Any]) -> bool:
    """Whether a reply says nothing."""
    return not any(message.get(key) for key in ("tool_calls", "reasoning_content")) and not message["content"].strip()
