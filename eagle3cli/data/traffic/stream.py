"""The message that a streamed reply adds up to: chunks of OpenAI's API, as a list or as server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from eagle3cli.data.conversations.messages import Message, kind_of
from eagle3cli.errors import DataError

DONE = "[DONE]"
TEXTS = ("content", "reasoning_content", "reasoning")


def is_chunk(value: Any) -> bool:
    """Whether a JSON value is one chunk of a stream."""
    choices = value.get("choices") if isinstance(value, Mapping) else None
    if not isinstance(choices, list):
        return False
    return value.get("object") == "chat.completion.chunk" or any(
        isinstance(choice, Mapping) and "delta" in choice for choice in choices
    )


def read_events(text: str) -> list[Any]:
    """The JSON values of server-sent events; raises DataError where one is none."""
    values = []
    for line in text.splitlines():
        name, colon, data = line.partition(":")
        data = data.strip()
        if name.strip() != "data" or not colon or data == DONE or not data:
            continue
        try:
            values.append(json.loads(data))
        except (ValueError, RecursionError) as error:
            raise DataError("bad-exchange", "the stream holds an event that is not JSON") from error
    return values


def joined_chunks(chunks: Iterable[Any]) -> tuple[Message, str]:
    """The reply of the first choice and its finish reason.

    Raises DataError where the stream broke off: such a reply ends where nobody but the network ended it.
    """
    texts: dict[str, str] = {}
    calls: dict[int, dict[str, Any]] = {}
    finish = ""
    for chunk in chunks:
        if not isinstance(chunk, Mapping):
            raise DataError("bad-exchange", f"a chunk of the stream is {kind_of(chunk)}, not an object")
        if chunk.get("error"):
            raise DataError("server-error", "the server answered with an error")
        for choice in chunk.get("choices") or ():
            if not isinstance(choice, Mapping) or choice.get("index", 0) != 0:
                continue
            delta = choice.get("delta")
            delta = delta if isinstance(delta, Mapping) else {}
            for name in TEXTS:
                if isinstance(delta.get(name), str):
                    texts[name] = texts.get(name, "") + delta[name]
            for call in delta.get("tool_calls") or ():
                _add_call(calls, call)
            finish = choice.get("finish_reason") or finish
    if not isinstance(finish, str) or not finish:
        raise DataError("unfinished-reply", "the stream breaks off before its end")
    message: Message = {"role": "assistant", "content": "", **texts}
    if calls:
        message["tool_calls"] = [calls[index] for index in sorted(calls)]
    return message, finish


def _add_call(calls: dict[int, dict[str, Any]], part: Any) -> None:
    """Add a piece of a tool call: its name comes once, its arguments in pieces."""
    if not isinstance(part, Mapping) or not isinstance(part.get("index", 0), int):
        raise DataError("bad-exchange", "a tool call of the stream is no object with an index")
    call = calls.setdefault(part.get("index", 0), {"type": "function", "function": {"name": "", "arguments": ""}})
    if isinstance(part.get("id"), str):
        call["id"] = part["id"]
    function = part.get("function")
    for name in ("name", "arguments"):
        if isinstance(function, Mapping) and isinstance(function.get(name), str):
            call["function"][name] += function[name]
