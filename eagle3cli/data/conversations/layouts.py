"""Where a row of a data set keeps its messages: the layouts that people publish, brought to one list of raw messages.

Knows columns, not roles or contents; what stands in a message is the business of
:mod:`eagle3cli.data.conversations.messages`.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from itertools import chain
from typing import Any

from eagle3cli.data.conversations.messages import ROLE_NAMES, kind_of
from eagle3cli.errors import DataError, UsageError

LISTS = ("conversations", "messages", "conversation")
TURNS = "turns"
"""User turns alone, as strings; ``reference`` may hold a reply to each."""
ALTERNATING = ("data", "dialog", "dialogue")
"""Lists of strings that the user and the assistant said in turn."""
PROMPTS = ("prompt", "question", "instruction", "problem", "user", "query", "input")
REPLIES = ("output", "response", "answer", "completion", "solution", "assistant")
CHOSEN = "chosen"
"""Of two replies the better one: a text, a message, or messages, perhaps with the prompt; the other is ``rejected``."""
_SPOKEN = re.compile(r"(?:\A|\n\n)(Human|Assistant):")
IDS = ("id", "prompt_id", "conversation_id", "uuid")


def parse_mapping(pairs: tuple[str, ...]) -> dict[str, str]:
    """``--map role=column`` pairs as ``{role: column}``; raises UsageError for anything else."""
    mapping = {}
    for pair in pairs:
        role, equals, column = pair.partition("=")
        if not equals or not column or role not in (*ROLE_NAMES, "id", "messages"):
            raise UsageError(
                "invalid-value",
                f"{pair!r} is not role=column",
                where="--map",
                fix="e.g. --map user=question assistant=answer (roles: user, assistant, system, messages or id)",
            )
        mapping[ROLE_NAMES.get(role, role)] = column
    return mapping


def raw_messages(raw: Mapping[str, Any], mapping: Mapping[str, str] | None = None) -> list[Any]:
    """The row's messages as they stand; raises DataError where no column holds any.

    ``mapping`` is {role: column}; without it the layout is told by the columns' names.
    """
    if mapping:
        missing = [column for column in mapping.values() if column not in raw]
        if missing:
            close = difflib.get_close_matches(missing[0], list(raw), n=1)
            raise DataError(
                "row-messages",
                f"no column {missing[0]!r}" + (f"; did you mean {close[0]!r}?" if close else _column_names(raw)),
            )
        values = {role: raw[column] for role, column in mapping.items() if role != "id"}
        if "messages" in values:
            return _list(values["messages"], mapping["messages"])
        if values:
            return _pairs(values.get("system"), values.get("user"), values.get("assistant"))
    for key in LISTS:
        if raw.get(key) is not None:
            return _with_chosen(_list(raw[key], key), raw)
    if raw.get(TURNS) is not None:
        return _turns(_list(raw[TURNS], TURNS), raw.get("reference"))
    for key in ALTERNATING:
        if isinstance(raw.get(key), list) and all(isinstance(text, str) for text in raw[key]):
            return [_message("assistant" if i % 2 else "user", text) for i, text in enumerate(raw[key])]
    if empty := [key for key in LISTS if key in raw]:
        raise DataError("row-messages", f"{empty[0]} is null, not a list of messages")
    return _from_columns(raw)


def identifier(raw: Mapping[str, Any], mapping: Mapping[str, str] | None = None) -> str:
    """The row's id as text; empty where it has none."""
    columns = (mapping["id"],) if mapping and "id" in mapping else IDS
    value = next((raw[column] for column in columns if raw.get(column) is not None), "")
    return str(value) if isinstance(value, str | int) else ""


def raw_tools(raw: Mapping[str, Any]) -> list[Any]:
    """The definitions of the tools that the conversation may call, as they stand (also as JSON text)."""
    tools = raw.get("tools")
    if isinstance(tools, str) and tools.strip():
        try:
            tools = json.loads(tools)
        except ValueError as error:
            raise DataError("row-tools", "tools is text that is not JSON") from error
    if not tools:
        return []
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise DataError("row-tools", f"tools is {kind_of(tools)}, not a list of objects")
    return tools


def _column_names(raw: Mapping[str, Any]) -> str:
    return f" (columns: {', '.join(str(name)[:40] for name in list(raw)[:6]) or 'none'})"


def _message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def _exchange(question: Any, reply: Any) -> list[dict[str, Any]]:
    return [_message("user", question), _message("assistant", reply)]


def _list(value: Any, name: str) -> list[Any]:
    """A list of messages: itself, as JSON text, or as columns (an object of equally long lists)."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise DataError("row-messages", f"{name} is text that is not JSON") from error
    if isinstance(value, Mapping) and value and all(isinstance(column, list) for column in value.values()):
        if len({len(column) for column in value.values()}) != 1:
            raise DataError("row-messages", f"{name} holds columns of different lengths")
        value = [dict(zip(value, entries, strict=True)) for entries in zip(*value.values(), strict=True)]
    if not isinstance(value, list):
        raise DataError("row-messages", f"{name} is {kind_of(value)}, not a list of messages")
    return list(value)


def _with_chosen(messages: list[Any], raw: Mapping[str, Any]) -> list[Any]:
    """The messages with the chosen reply behind them, where they end with a question and the row has one."""
    last = messages[-1] if messages else None
    role = last.get("role", last.get("from")) if isinstance(last, Mapping) else None
    chosen = raw.get(CHOSEN)
    if chosen in (None, "", []) or not isinstance(role, str) or ROLE_NAMES.get(role.strip().lower()) != "user":
        return messages
    return _whole_conversation(chosen) or _pairs(None, messages, [chosen] if isinstance(chosen, Mapping) else chosen)


def _whole_conversation(chosen: Any) -> list[Any]:
    """The chosen reply's messages, where they begin with the question; else none."""
    if isinstance(chosen, str):
        spoken = _spoken(chosen)
        return spoken if spoken and spoken[0]["role"] == "user" and len(spoken) > 1 else []
    if not isinstance(chosen, list) or not chosen or not isinstance(chosen[0], Mapping):
        return []
    role = chosen[0].get("role", chosen[0].get("from"))
    begins = isinstance(role, str) and ROLE_NAMES.get(role.strip().lower()) in ("user", "system")
    return list(chosen) if begins else []


def _spoken(text: Any) -> list[Any]:
    """The messages of a text with ``Human:`` and ``Assistant:`` before each; none where it has no speakers."""
    if not isinstance(text, str) or not (first := _SPOKEN.search(text)) or text[: first.start()].strip():
        return []
    parts = _SPOKEN.split(text)[1:]
    roles = {"Human": "user", "Assistant": "assistant"}
    said = [_message(roles[name], text.strip()) for name, text in zip(parts[::2], parts[1::2], strict=True)]
    return said[:-1] if not said[-1]["content"] and said[-1]["role"] == "assistant" else said


def _turns(turns: list[Any], replies: Any) -> list[Any]:
    """User turns, each followed by its reply where there is one for every turn; lists of messages stay as they are."""
    if not all(isinstance(turn, str) for turn in turns):
        return turns
    if not isinstance(replies, list) or len(replies) != len(turns) or not all(replies):
        return [_message("user", turn) for turn in turns]
    return [message for pair in zip(turns, replies, strict=True) for message in _exchange(*pair)]


def _from_columns(raw: Mapping[str, Any]) -> list[Any]:
    """A prompt column, and perhaps a reply column, earlier turns and a system prompt."""
    if raw.get(CHOSEN) is not None and (whole := _whole_conversation(raw[CHOSEN])):
        return whole
    key = next((key for key in PROMPTS if raw.get(key) is not None), None)
    if key is None:
        raise DataError("row-messages", f"no conversation in the row{_column_names(raw)}; {_advice(raw)}")
    prompt: Any = raw[key]
    more = raw.get("input")
    if key == "instruction" and isinstance(more, str) and more.strip() and isinstance(prompt, str):
        prompt = f"{prompt}\n\n{more}"
    reply = next((raw[name] for name in (CHOSEN, *REPLIES) if raw.get(name) is not None), None)
    reply = [reply] if isinstance(reply, Mapping) else reply
    prompt = (_spoken(prompt) or prompt) if raw.get(CHOSEN) is not None else prompt
    history = raw["history"] if isinstance(raw.get("history"), list) else []
    pairs = [pair for pair in history if isinstance(pair, list) and len(pair) == 2]
    system = _pairs(raw.get("system") or "", None, None)
    return [*system, *(message for pair in pairs for message in _exchange(*pair)), *_pairs(None, prompt, reply)]


def _advice(raw: Mapping[str, Any]) -> str:
    """How a row without a conversation can be read: one that wraps the rows themselves is taken for the file."""
    objects = {
        key: value[0] for key, value in raw.items() if isinstance(value, list) and value and isinstance(value[0], dict)
    }
    messages = (key for key, first in objects.items() if {"role", "from"} & first.keys())
    named = (key for key in raw if str(key).lower() in LISTS)
    if (key := next(chain(messages, named), None)) is not None:
        return f"if its messages stand in {key!r}: --map messages={key}"
    key = next(iter(objects), None)
    if key is not None and key.isidentifier():
        alone = f"jq -c '.{key}[]' FILE > rows.jsonl"
        return f"if the rows stand in its list {key!r}, make a file of that list alone: {alone}"
    return "name the columns with --map role=column"


def _pairs(system: Any, prompt: Any, reply: Any) -> list[Any]:
    """System, prompt and reply columns as messages; each may hold a list of messages, a prompt also user turns."""
    messages: list[Any] = [_message("system", system)] if system not in (None, "") else []
    if isinstance(prompt, list) and all(isinstance(turn, str) for turn in prompt):
        return messages + _turns(prompt, reply)
    if prompt not in (None, ""):
        messages += prompt if isinstance(prompt, list) else [_message("user", prompt)]
    if reply not in (None, ""):
        messages += reply if isinstance(reply, list) else [_message("assistant", reply)]
    return messages
