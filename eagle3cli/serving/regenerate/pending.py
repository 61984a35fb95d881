"""Which messages of an input row stand, and where the target replies."""

from __future__ import annotations

from typing import Literal

from eagle3cli.data.conversations.conversation import Conversation, join_runs
from eagle3cli.data.conversations.messages import Message
from eagle3cli.data.conversations.system_prompt import with_system
from eagle3cli.errors import DataError
from eagle3cli.serving.conversation import OpenConversation


def open_conversation(
    index: int,
    conversation: Conversation,
    turns: Literal["last", "all"],
    system_prompt: str | None = None,
    line_number: int = 0,
) -> OpenConversation:
    """The conversation in which the last or every reply is rewritten; a question that has none gets a reply.

    Messages with tool calls stand: the tool's answers after them belong to these very calls. Raises DataError where
    there is nothing to write.
    """
    messages = list(join_runs(conversation).messages)
    if system_prompt is not None:
        messages = with_system(messages, system_prompt)
    replies = [i for i, message in enumerate(messages) if message["role"] == "assistant"]
    if turns == "last":
        replies = replies[-1:] if messages[-1]["role"] == "assistant" else []
    pending: list[Message | None] = []
    for i, message in enumerate(messages):
        pending.append(None if i in replies and not message.get("tool_calls") else message)
        after = messages[i + 1]["role"] if i + 1 < len(messages) else None
        if message["role"] != "assistant" and (after is None or message["role"] == after == "user"):
            pending.append(None)
    if None not in pending:
        raise DataError("no-reply", "no reply to rewrite: the assistant's turns are tool calls")
    return OpenConversation(index, pending, conversation.id, line_number, conversation.tools, conversation.source)
