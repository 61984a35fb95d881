"""One layout for every conversation: messages with a role and a content, or the reason why a row is not one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eagle3cli.data.conversations.images import (
    images_of,
    left_out_media,
    place_images,
    row_images,
    with_checked_images,
)
from eagle3cli.data.conversations.layouts import identifier, raw_messages, raw_tools
from eagle3cli.data.conversations.messages import PARTS, Message, to_message
from eagle3cli.data.images.reference import ImageRef
from eagle3cli.errors import DataError

LONGEST_SOURCE = 100
"""Characters of a column ``source`` that names a data set; some hold a text."""


@dataclass(frozen=True)
class Conversation:
    """Messages in order; ``finish`` says for each assistant message how the target ended it (stop, length)."""

    id: str
    messages: tuple[Message, ...]
    finish: tuple[str, ...] = ()
    tools: tuple[Message, ...] = ()
    """Definitions of the tools that the assistant may call, for chat templates that write them."""
    repairs: tuple[str, ...] = field(default=(), compare=False)
    source: str = ""
    """The data set that it comes from, where its row names one."""

    def to_row(self) -> dict[str, Any]:
        """The row on disk."""
        row: dict[str, Any] = {"id": self.id, "conversations": list(self.messages)}
        if self.finish:
            row["finish"] = list(self.finish)
        if self.tools:
            row["tools"] = list(self.tools)
        if self.source:
            row["source"] = self.source
        return row

    @property
    def user_turns(self) -> int:
        """Number of user messages."""
        return sum(message["role"] == "user" for message in self.messages)

    @property
    def prompt(self) -> str:
        """The first user message."""
        return next(str(message["content"]) for message in self.messages if message["role"] == "user")

    @property
    def prompt_key(self) -> str:
        """What tells one first question from another: its text and its images."""
        first = next(message for message in self.messages if message["role"] == "user")
        return " ".join([self.prompt.strip(), *(image.sha256 for image in images_of([first]))])

    @property
    def images(self) -> tuple[ImageRef, ...]:
        """The images of all messages, in order, of a conversation whose images are checked."""
        return images_of(self.messages)

    def with_images(self, folder: Path | None) -> Conversation:
        """The same with its images found (relative paths below ``folder``) and their hashes known; raises DataError
        with the reason for one that cannot be used."""
        return replace(self, messages=with_checked_images(self.messages, folder))

    def digest(self) -> bytes:
        """16 bytes that are equal for equal messages, whatever the id."""
        messages = [_without_places(message) for message in self.messages]
        content = [messages, self.tools] if self.tools else messages
        text = json.dumps(content, ensure_ascii=False, sort_keys=True)
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def to_conversation(
    raw: Mapping[str, Any], mapping: Mapping[str, str] | None = None, *, empty_replies: bool = False
) -> Conversation:
    """The conversation in a row of any known layout; raises DataError with the reason where there is none.

    Layouts: ``conversations`` or ``messages`` (role/content or from/value), ``turns``, a prompt column with or without
    a reply column, and whatever ``mapping`` ({role: column}) names; ``tools`` beside them. A reply may be empty where
    the target wrote it (there is a ``finish``), and with ``empty_replies``.
    """
    rows = raw_messages(raw, mapping)
    finish = raw.get("finish") or ()
    if not isinstance(finish, list | tuple) or not all(isinstance(reason, str) for reason in finish):
        raise DataError("row-finish", "finish is not a list of strings")
    if not rows:
        raise DataError("row-messages", "no messages")
    messages = [
        to_message(item, number, generated=bool(finish) or empty_replies) for number, item in enumerate(rows, 1)
    ]
    images = row_images(raw)
    repairs = left_out_media(raw, messages, images)
    messages = place_images(messages, images)
    replies = sum(message["role"] == "assistant" for message in messages)
    if finish and len(finish) != replies:
        raise DataError("row-finish", f"finish has {len(finish)} entries for {replies} assistant messages")
    first_user = next((i for i, message in enumerate(messages) if message["role"] == "user"), None)
    if first_user is None:
        raise DataError("row-messages", "no user message")
    # What an assistant says before any user message nobody asked for, so the target would not say it.
    system = [message for message in messages[:first_user] if message["role"] == "system"]
    dropped = first_user - len(system)
    dropped_replies = sum(message["role"] == "assistant" for message in messages[:first_user])
    if dropped:
        repairs += (f"{dropped} leading assistant message{'s' if dropped > 1 else ''} dropped",)
    tools = tuple(dict(tool) for tool in raw_tools(raw))
    messages = [*system, *messages[first_user:]]
    ended = tuple(finish)[dropped_replies:]
    return Conversation(identifier(raw, mapping), tuple(messages), ended, tools, repairs, source_of(raw))


def _without_places(message: Message) -> Message:
    """A message whose images are named by their hashes alone, where these are known: copies of a file are one image."""
    if PARTS not in message:
        return message
    parts = [part if isinstance(part, str) else part.get("sha256", part) for part in message[PARTS]]
    return {**message, PARTS: parts}


def source_of(raw: Mapping[str, Any]) -> str:
    """The data set that a row says it comes from; empty where it says none."""
    source = raw.get("source")
    return source if isinstance(source, str) and len(source) <= LONGEST_SOURCE else ""


def join_runs(conversation: Conversation) -> Conversation:
    """Join neighbouring messages of the same role (user or assistant), which most chat templates refuse.

    Where nobody replies, neighbouring user messages are turns that wait for their replies, and stay apart.
    """
    if not any(message["role"] == "assistant" for message in conversation.messages):
        return conversation
    joined: list[Message] = []
    for message in conversation.messages:
        last = joined[-1] if joined else None
        plain = set(message) == {"role", "content"} and message["role"] in ("user", "assistant")
        if last is not None and plain and set(last) == {"role", "content"} and last["role"] == message["role"]:
            joined[-1] = {"role": last["role"], "content": f"{last['content']}\n\n{message['content']}"}
        else:
            joined.append(message)
    if len(joined) == len(conversation.messages):
        return conversation
    repairs = (*conversation.repairs, "neighbouring messages of the same role joined")
    return replace(conversation, messages=tuple(joined), finish=(), repairs=repairs)


def first_prompt(conversation: Conversation) -> Conversation:
    """Only the first user message."""
    message = next(message for message in conversation.messages if message["role"] == "user")
    return replace(conversation, messages=(message,), finish=())


def cut_turns(conversation: Conversation, most: int) -> Conversation:
    """Only what comes before user turn ``most + 1``."""
    user_turns = 0
    for index, message in enumerate(conversation.messages):
        user_turns += message["role"] == "user"
        if user_turns > most:
            messages = conversation.messages[:index]
            replies = sum(message["role"] == "assistant" for message in messages)
            return replace(conversation, messages=messages, finish=conversation.finish[:replies])
    return conversation
