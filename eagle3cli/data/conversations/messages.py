"""One message in one form: a role of four, a content of text, reasoning and tool calls as chat templates read them."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from eagle3cli.errors import DataError

Message = dict[str, Any]

_NAMES_OF_ROLES = {
    "user": ("user", "human"),
    "assistant": ("assistant", "gpt", "chatgpt", "bing", "bard", "model", "bot"),
    "system": ("system", "developer"),
    "tool": ("tool", "function", "observation", "ipython"),
}
ROLE_NAMES = {name: role for role, names in _NAMES_OF_ROLES.items() for name in names}
CALLING = ("function_call", "tool_call")
"""Role names of turns whose content is a call, as JSON text."""
REASONING = ("reasoning_content", "reasoning", "thinking")
PARTS = "content_parts"
"""Where a message keeps a content of several parts, or with images: texts, and an object for each image (see
``conversations/images.py``). Its content has the texts line by line."""
IMAGE_KINDS = ("image", "image_url", "input_image")
IMAGE_KEYS = ("image", "image_url", "url", "path", "base64", "source")
"""Where a part of one of these kinds names its image, in the forms of transformers, OpenAI and Anthropic."""
LONGEST_SHOWN = 40


def to_message(item: Any, number: int, *, generated: bool) -> Message:
    """Message ``number`` (from 1) of a row; raises DataError with the reason where it is none.

    ``generated``: the target wrote the replies, so an empty one is what it said.
    """
    if not isinstance(item, Mapping):
        raise DataError("row-messages", f"message {number} is {kind_of(item)}, not an object")
    role = _role(item, number)
    where = f"message {number} ({role})"
    calls = tool_calls(item, where)
    content = next((item[key] for key in ("content", "value") if key in item), None)
    if not any(key in item for key in ("content", "value")) and not calls:
        raise DataError("row-messages", f"{where} has no content")
    if role == "assistant" and _name(item) in CALLING:
        calls = [_call(content, where)]
        content = ""
    content = "" if content is None and calls else _text(content, where)
    extra: Message = _parts(item, content, where)
    pictured = any(not isinstance(part, str) for part in extra.get(PARTS, ()))
    if pictured and role != "user":
        raise DataError("row-images", f"{where}: an image in a message that is not the user's")
    if key := next((key for key in REASONING if item.get(key)), None):
        if not isinstance(item[key], str):
            raise DataError("row-messages", f"{where}: {key} is {kind_of(item[key])}, not a string")
        extra["reasoning_content"] = item[key]
    if calls:
        extra["tool_calls"] = calls
    extra |= {key: item[key] for key in ("tool_call_id", "name") if isinstance(item.get(key), str) and item[key]}
    says = any(key != PARTS for key in extra)
    may_be_empty = pictured or role in ("system", "tool") or (role == "assistant" and (generated or says))
    if not may_be_empty and not content.strip():
        raise DataError("row-messages", f"{where} is empty")
    return {"role": role, "content": content, **extra}


def image_parts(message: Mapping[str, Any]) -> list[Message]:
    """The parts of a message that are images."""
    return [part for part in message.get(PARTS) or () if not isinstance(part, str)]


def _parts(item: Mapping[str, Any], content: str, where: str) -> Message:
    """The parts of a content that is more than one, or has an image, as {PARTS: parts}: templates put them together in
    ways of their own."""
    raw = item.get(PARTS, item.get("content", item.get("value")))
    if not isinstance(raw, list):
        return {}
    parts = [_image(part, where) or (part.get("text") if isinstance(part, Mapping) else part) for part in raw]
    texts = [part for part in parts if isinstance(part, str)]
    images = [part for part in parts if isinstance(part, dict)]
    if (len(parts) < 2 and not images) or len(texts) + len(images) != len(parts):
        return {}
    return {PARTS: parts} if "\n".join(texts) == content else {}


def _image(part: Any, where: str) -> Message | None:
    """A part that is an image as ``{"type": "image", "image": source or None}``, perhaps with the hash that it had;
    None for another part."""
    if not isinstance(part, Mapping) or part.get("type") not in IMAGE_KINDS:
        return None
    value = next((part[key] for key in IMAGE_KEYS if part.get(key) is not None), None)
    if value is None and part["type"] != "image":
        raise DataError(
            "row-messages",
            f"{where}: content is a list with a part of type {part['type']!r}, which is no text and names no image",
        )
    known = {"sha256": part["sha256"]} if isinstance(part.get("sha256"), str) else {}
    return {"type": "image", "image": _image_source(value, where), **known}


def _image_source(value: Any, where: str) -> str | None:
    """The path or URL of an image part; None where it stands for an image of the row's column."""
    if isinstance(value, Mapping):
        if isinstance(value.get("data"), str):
            return f"data:{value.get('media_type') or 'image/png'};base64,{value['data']}"
        if isinstance(value.get("bytes"), bytes):
            return f"data:image/png;base64,{base64.b64encode(value['bytes']).decode()}"
        value = next((value[key] for key in ("url", "path") if value.get(key) is not None), None)
    if value is None or (isinstance(value, str) and value.strip()):
        return value
    raise DataError("row-images", f"{where}: an image part whose image is {kind_of(value)}, not a path or URL")


def _name(item: Mapping[str, Any]) -> Any:
    name = item.get("role", item.get("from"))
    return name.strip().lower() if isinstance(name, str) else name


def _role(item: Mapping[str, Any], number: int) -> str:
    name = _name(item)
    if name is None:
        raise DataError("row-messages", f"message {number} has no role")
    if not isinstance(name, str):
        raise DataError("row-messages", f"message {number}: its role is {kind_of(name)}, not a string")
    role = "assistant" if name in CALLING else ROLE_NAMES.get(name)
    if role is None:
        raise DataError(
            "row-messages",
            f"message {number} has the unknown role {item.get('role', item.get('from'))[:LONGEST_SHOWN]!r}",
        )
    return role


def _text(content: Any, where: str) -> str:
    """A content as text; a list of text parts is put together, a part line by part line."""
    if isinstance(content, str):
        return content
    if not isinstance(content, list) or not content:
        raise DataError("row-messages", f"{where}: content is {kind_of(content)}, not a string")
    texts = []
    for part in content:
        if isinstance(part, Mapping) and part.get("type") in IMAGE_KINDS:
            continue
        text = part.get("text") if isinstance(part, Mapping) else part
        if not isinstance(text, str):
            kind = part.get("type") if isinstance(part, Mapping) else None
            named = (
                f"a part of type {kind[:LONGEST_SHOWN]!r}" if isinstance(kind, str) else f"{kind_of(part)} as a part"
            )
            raise DataError("row-messages", f"{where}: content is a list with {named}, which is no text")
        texts.append(text)
    return "\n".join(texts)


def tool_calls(item: Mapping[str, Any], where: str) -> list[Message]:
    """The calls of a message as ``{"type": "function", "function": {"name", "arguments"}}``, arguments as an object.

    Chat templates write the arguments with a JSON filter, so text that is JSON is read first.
    """
    raw = item.get("tool_calls") or ([item["function_call"]] if item.get("function_call") else [])
    if not isinstance(raw, list):
        raise DataError("row-tools", f"{where}: tool_calls is {kind_of(raw)}, not a list")
    return [_call(call, where) for call in raw]


def _call(call: Any, where: str) -> Message:
    if isinstance(call, str):
        try:
            call = json.loads(call)
        except ValueError as error:
            raise DataError("row-tools", f"{where}: the tool call is text that is not JSON") from error
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise DataError("row-tools", f"{where}: a tool call has no function name")
    arguments = function.get("arguments", function.get("parameters"))
    if isinstance(arguments, str):
        try:
            read = json.loads(arguments) if arguments.strip() else {}
            arguments = read if isinstance(read, dict) else arguments
        except ValueError:
            pass  # what the model wrote is no JSON; templates write it as it is
    identifier: Message = {"id": call["id"]} if isinstance(call.get("id"), str) and call["id"] else {}
    function = {"name": function["name"], "arguments": {} if arguments is None else arguments}
    return {**identifier, "type": "function", "function": function}


def kind_of(value: Any) -> str:
    """What a JSON value is, in words."""
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)
