"""One layout for every conversation: messages with a role and a content, or the reason why a row is not one."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from eagle3cli.errors import DataError, UsageError

Message = dict[str, Any]

ROLE_NAMES = {
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "system": "system",
    "developer": "system",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
    "ipython": "tool",
}
LISTS = ("conversations", "messages", "conversation")
PROMPTS = ("prompt", "question", "instruction", "user", "query")
REPLIES = ("output", "response", "answer", "completion", "assistant")
IDS = ("id", "prompt_id", "conversation_id", "uuid")
KEPT = ("reasoning_content", "tool_calls", "tool_call_id", "name")


@dataclass(frozen=True)
class Conversation:
    """Messages in order; ``finish`` says for each assistant message how the target ended it (stop, length)."""

    id: str
    messages: tuple[Message, ...]
    finish: tuple[str, ...] = ()
    repairs: tuple[str, ...] = field(default=(), compare=False)

    def to_row(self) -> dict[str, Any]:
        """The row on disk."""
        row: dict[str, Any] = {"id": self.id, "conversations": list(self.messages)}
        return {**row, "finish": list(self.finish)} if self.finish else row

    @property
    def user_turns(self) -> int:
        """Number of user messages."""
        return sum(message["role"] == "user" for message in self.messages)

    @property
    def prompt(self) -> str:
        """The first user message."""
        return next(str(message["content"]) for message in self.messages if message["role"] == "user")

    def digest(self) -> bytes:
        """16 bytes that are equal for equal messages, whatever the id."""
        text = json.dumps(self.messages, ensure_ascii=False, sort_keys=True)
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def parse_mapping(pairs: tuple[str, ...]) -> dict[str, str]:
    """``--map role=column`` pairs as ``{role: column}``; raises UsageError for anything else."""
    mapping = {}
    for pair in pairs:
        role, equals, column = pair.partition("=")
        if not equals or not column or role not in (*ROLE_NAMES, "id", "messages"):
            known = "user, assistant, system, messages or id"
            raise UsageError(
                f"{pair!r} is not role=column",
                where="--map",
                fix=f"e.g. --map user=question assistant=answer (roles: {known})",
            )
        mapping[ROLE_NAMES.get(role, role)] = column
    return mapping


def to_conversation(raw: Mapping[str, Any], mapping: Mapping[str, str] | None = None) -> Conversation:
    """The conversation in a row of any known layout; raises DataError with the reason where there is none.

    Layouts: ``conversations`` or ``messages`` (role/content or from/value), a prompt column with or without a reply
    column, and whatever ``mapping`` ({role: column}) names.
    """
    rows = _mapped(raw, mapping) if mapping else _listed(raw)
    finish = raw.get("finish") or ()
    if not isinstance(finish, list | tuple) or not all(isinstance(reason, str) for reason in finish):
        raise DataError("finish is not a list of strings")
    if not rows:
        raise DataError("no messages")
    messages = [_message(item, number, written=bool(finish)) for number, item in enumerate(rows, 1)]
    replies = sum(message["role"] == "assistant" for message in messages)
    if finish and len(finish) != replies:
        raise DataError(f"finish has {len(finish)} entries for {replies} assistant messages")
    kept, repairs = _without_leading_replies(messages)
    dropped = replies - sum(message["role"] == "assistant" for message in kept)
    if not any(message["role"] == "user" for message in kept):
        raise DataError("no user message")
    return Conversation(_identifier(raw, mapping), tuple(kept), tuple(finish)[dropped:], repairs)


def _identifier(raw: Mapping[str, Any], mapping: Mapping[str, str] | None) -> str:
    columns = (mapping["id"],) if mapping and "id" in mapping else IDS
    value = next((raw[column] for column in columns if raw.get(column) is not None), "")
    return str(value) if isinstance(value, str | int) else ""


def _listed(raw: Mapping[str, Any]) -> list[Any]:
    for key in LISTS:
        if key in raw:
            if not isinstance(raw[key], list):
                raise DataError(f"{key} is {_kind(raw[key])}, not a list of messages")
            return list(raw[key])
    prompt_key = next((key for key in PROMPTS if raw.get(key) is not None), None)
    if prompt_key is None:
        found = ", ".join(list(raw)[:6]) or "none"
        raise DataError(f"no conversation in the row (columns: {found}); name the columns with --map role=column")
    if isinstance(raw[prompt_key], list):
        return list(raw[prompt_key])
    prompt = raw[prompt_key]
    if prompt_key == "instruction" and isinstance(raw.get("input"), str) and raw["input"].strip():
        prompt = f"{prompt}\n\n{raw['input']}"
    messages = (
        [{"role": "system", "content": raw["system"]}] if isinstance(raw.get("system"), str) and raw["system"] else []
    )
    messages.append({"role": "user", "content": prompt})
    reply_key = next((key for key in REPLIES if raw.get(key) is not None), None)
    return [*messages, {"role": "assistant", "content": raw[reply_key]}] if reply_key else messages


def _mapped(raw: Mapping[str, Any], mapping: Mapping[str, str]) -> list[Any]:
    wanted = {role: column for role, column in mapping.items() if role != "id"}
    missing = [column for column in mapping.values() if column not in raw]
    if missing:
        close = difflib.get_close_matches(missing[0], list(raw), n=1)
        meant = f"; did you mean {close[0]!r}?" if close else f" (columns: {', '.join(list(raw)[:6])})"
        raise DataError(f"no column {missing[0]!r}{meant}")
    if "messages" in wanted:
        value = raw[wanted["messages"]]
        if not isinstance(value, list):
            raise DataError(f"{wanted['messages']} is {_kind(value)}, not a list of messages")
        return list(value)
    if not wanted:
        return _listed(raw)
    order = ("system", "user", "assistant")
    return [
        {"role": role, "content": raw[wanted[role]]} for role in order if role in wanted and raw[wanted[role]] != ""
    ]


def _kind(value: Any) -> str:
    names = {
        dict: "an object",
        list: "a list",
        str: "a string",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return "null" if value is None else names.get(type(value), type(value).__name__)


def _message(item: Any, number: int, *, written: bool) -> Message:
    """One message in role/content form; ``written``: the target wrote the replies, so an empty one is what it said."""
    if not isinstance(item, Mapping):
        raise DataError(f"message {number} is {_kind(item)}, not an object")
    name = item.get("role", item.get("from"))
    if name is None:
        raise DataError(f"message {number} has no role")
    role = ROLE_NAMES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        raise DataError(f"message {number} has the unknown role {name!r}")
    if "content" not in item and "value" not in item and not item.get("tool_calls"):
        raise DataError(f"message {number} ({role}) has no content")
    content = item.get("content", item.get("value"))
    extra = {key: item[key] for key in KEPT if item.get(key)}
    if content is None and role == "assistant" and "tool_calls" in extra:
        content = ""
    if not isinstance(content, str):
        raise DataError(f"message {number} ({role}): content is {_kind(content)}, not a string")
    if not isinstance(extra.get("reasoning_content", ""), str):
        raise DataError(
            f"message {number} ({role}): reasoning_content is {_kind(extra['reasoning_content'])}, not a string"
        )
    may_be_empty = role in ("system", "tool") or (role == "assistant" and (written or bool(extra)))
    if not may_be_empty and not content.strip():
        raise DataError(f"message {number} ({role}) is empty")
    return {"role": role, "content": content, **extra}


def _without_leading_replies(messages: list[Message]) -> tuple[list[Message], tuple[str, ...]]:
    """Drop what an assistant says before any user message: nobody asked, so the target would not say it."""
    first_user = next((i for i, message in enumerate(messages) if message["role"] == "user"), len(messages))
    kept = [message for i, message in enumerate(messages) if i > first_user or message["role"] in ("system", "user")]
    dropped = len(messages) - len(kept)
    return kept, (f"{dropped} leading assistant message{'s' if dropped > 1 else ''} dropped",) if dropped else ()


def join_runs(conversation: Conversation) -> Conversation:
    """Join neighbouring messages of the same role (user or assistant), which most chat templates refuse."""
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
    seen = 0
    for index, message in enumerate(conversation.messages):
        seen += message["role"] == "user"
        if seen > most:
            kept = conversation.messages[:index]
            replies = sum(message["role"] == "assistant" for message in kept)
            return replace(conversation, messages=kept, finish=conversation.finish[:replies])
    return conversation
