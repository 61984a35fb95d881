"""A system prompt that takes the place of each row's own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from eagle3cli.data.conversations.messages import Message
from eagle3cli.errors import UsageError


def with_system(messages: Sequence[Message], text: str) -> list[Message]:
    """The messages with ``text`` as their only system message; an empty text leaves none."""
    others = [message for message in messages if message["role"] != "system"]
    return [{"role": "system", "content": text}, *others] if text else others


def system_prompt_text(value: str | None) -> str | None:
    """The system prompt that a setting means: text, or ``@FILE``. Raises UsageError where the file cannot be read."""
    if value is None or not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            "unreadable-file", f"cannot read {value[1:]}: {error}", where="--system-prompt", fix="check the path"
        ) from error
