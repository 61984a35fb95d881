"""OpenAI's Responses API in the words of its chat API: the input as messages, the output as a reply.

Not here: which object of a log is a request or a response (``exchange.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eagle3cli.data.conversations.messages import Message, kind_of
from eagle3cli.errors import DataError

ITEMS = ("message", "function_call", "function_call_output", "reasoning")
"""Kinds of items that messages are made of; others are of tools that only the first server has."""
TEXTS = ("input_text", "output_text", "reasoning_text", "summary_text")
LAST_EVENTS = ("response.completed", "response.incomplete", "response.failed")


def is_input(value: Any) -> bool:
    """Whether an object is a request of the Responses API."""
    if not isinstance(value, Mapping) or "messages" in value:
        return False
    named = any(isinstance(value.get(name), str) for name in ("model", "instructions", "previous_response_id"))
    return isinstance(value.get("input"), str | list) and bool(value["input"]) and named


def is_output(value: Any) -> bool:
    """Whether a value is a response of it, or its list of items."""
    if isinstance(value, Mapping):
        return isinstance(value.get("output"), list) and (
            value.get("object") == "response" or is_output(value["output"])
        )
    return isinstance(value, list) and any(isinstance(item, Mapping) and item.get("type") in ITEMS for item in value)


def chat_request(request: Mapping[str, Any]) -> dict[str, Any]:
    """The request as the chat API has it; raises DataError where it holds but a part of the conversation."""
    if request.get("previous_response_id") or request.get("conversation"):
        raise DataError("bad-exchange", "the request goes on from an earlier response, which the line does not hold")
    if isinstance(request.get("prompt"), Mapping):
        raise DataError(
            "bad-exchange", "the request names a prompt that its server keeps, which the line does not hold"
        )
    items = request["input"]
    messages = [{"role": "user", "content": items}] if isinstance(items, str) else _messages(items)
    if isinstance(request.get("instructions"), str) and request["instructions"]:
        messages = [{"role": "system", "content": request["instructions"]}, *messages]
    tools = request.get("tools")
    if isinstance(tools, list):
        tools = [_tool(tool) for tool in tools]
    response_format = request["text"].get("format") if isinstance(request.get("text"), Mapping) else None
    known = {name: value for name, value in request.items() if name not in ("input", "instructions", "tools", "text")}
    return {**known, "messages": messages, "tools": tools or None, "response_format": response_format}


def chat_reply(response: Any) -> tuple[Message, str]:
    """The reply as one message, and how it ended; raises DataError where there is none."""
    around = response if isinstance(response, Mapping) else {}
    if around.get("error") or around.get("status") == "failed":
        raise DataError("server-error", "the server answered with an error")
    replies = _messages(around["output"] if around else response)
    if len(replies) != 1 or replies[0].get("role") != "assistant":
        raise DataError("bad-exchange", "the response has no message")
    finish = "tool_calls" if replies[0].get("tool_calls") else "stop"
    if around.get("status") == "incomplete":
        details = around.get("incomplete_details")
        reason = details.get("reason") if isinstance(details, Mapping) else None
        finish = "length" if reason == "max_output_tokens" else str(reason or "incomplete")
    return replies[0], finish


def last_event(events: list[Any]) -> Any:
    """The response that a stream of its events ends with; None where these are no such events.

    Raises DataError where the stream broke off.
    """
    named = [event for event in events if isinstance(event, Mapping) and str(event.get("type")).startswith("response.")]
    if not named:
        return None
    last = next((event.get("response") for event in named if event["type"] in LAST_EVENTS), None)
    if not is_output(last):
        raise DataError("unfinished-reply", "the stream breaks off before its end")
    return last


def _messages(items: list[Any]) -> list[dict[str, Any]]:
    """Items as messages: what the assistant says, thinks and calls one after the other is one message."""
    messages: list[dict[str, Any]] = []
    for item in items:
        if not isinstance(item, Mapping):
            raise DataError("bad-exchange", f"an item is {kind_of(item)}, not an object")
        kind = item.get("type", "message")
        if kind not in ITEMS:
            raise DataError("bad-exchange", f"an item of type {str(kind)[:40]!r}, which no message holds")
        message = _message(kind, item)
        last = messages[-1] if messages else {}
        if message["role"] == last.get("role") == "assistant":
            for name, value in message.items():
                if name != "role":
                    last[name] = last[name] + value if name in last else value
        else:
            messages.append(message)
    return messages


def _message(kind: str, item: Mapping[str, Any]) -> dict[str, Any]:
    if kind == "function_call":
        function = {"name": item.get("name"), "arguments": item.get("arguments")}
        call = {"id": item.get("call_id"), "type": "function", "function": function}
        return {"role": "assistant", "content": "", "tool_calls": [call]}
    if kind == "function_call_output":
        return {"role": "tool", "tool_call_id": item.get("call_id"), "content": _content(item.get("output"))}
    if kind == "reasoning":
        thought = _said(item.get("content") or item.get("summary") or "")
        return {"role": "assistant", "content": "", **({"reasoning_content": thought} if thought else {})}
    role = item.get("role", "assistant")
    content = item.get("content")
    return {"role": role, "content": _said(content) if role == "assistant" else _content(content)}


def _said(content: Any) -> str:
    """What the assistant says or thinks; raises DataError where that is no text, as a refusal."""
    text = _content(content)
    if not isinstance(text, str):
        raise DataError("bad-exchange", "an item of the assistant holds something else than text")
    return text


def _content(content: Any) -> Any:
    """Text where all parts are; else the parts, which say themselves what they are."""
    if not isinstance(content, list):
        return content
    parts = [part.get("text") if isinstance(part, Mapping) and part.get("type") in TEXTS else None for part in content]
    return "".join(map(str, parts)) if all(isinstance(part, str) for part in parts) else content


def _tool(tool: Any) -> Any:
    if not isinstance(tool, Mapping) or tool.get("type") != "function" or "function" in tool:
        return tool
    return {"type": "function", "function": {name: value for name, value in tool.items() if name != "type"}}
