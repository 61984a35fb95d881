"""Replies that were recorded earlier: used where they are exactly what the target would write now.

A recorded file (jsonl, also gzip) starts with a line of settings, ``{"target", "max_tokens", "temperature", ...}``;
each other line is a reply to a first message: ``{"id", "prompt_sha", "reply", "finish"}``. It is made by
``python -m eagle3cli.serving.regenerate.record``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any

from eagle3cli.data.conversations.messages import Message
from eagle3cli.data.sources.lines import read_jsonl
from eagle3cli.errors import DataError, UsageError
from eagle3cli.runtime.provenance import changes
from eagle3cli.runtime.report import Reporter

HEADER: dict[str, Any] = {
    "target": None,
    "max_tokens": None,
    "temperature": 0,
    "chat_template": "auto",
    "chat_template_kwargs": [],
    "reasoning_effort": None,
    "system_prompt": None,
    "is_reasoning_model": False,
}
"""The settings that a greedy reply depends on, with what holds where a file does not say."""
WEIGHTS = ("target_source", "target_weights")
"""What tells apart two targets of one name: the .gguf file that it was made of, and its weights."""


Recorded = Mapping[tuple[str, str], tuple[str, str]]
"""Text and finish of replies, by row id and hash of the first message."""
PromptWith = Callable[[Sequence[str]], str]
"""A message's prompt with these ``name=value`` options of the chat template."""


def find_reply(recorded: Recorded, row_id: str, prompt: list[Message]) -> tuple[str, str] | None:
    """Text and finish of the reply to ``prompt``, if it is a lone user message that was recorded."""
    if len(prompt) != 1 or prompt[0]["role"] != "user":
        return None
    return recorded.get((row_id, prompt_sha(prompt[0]["content"])))


def prompt_sha(text: str) -> str:
    """The first 16 hex digits of a message's SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def load_recorded(
    name: str | None, settings: Mapping[str, Any], report: Reporter, prompt_with: PromptWith | None = None
) -> Recorded:
    """The replies of a file or of a packaged name; none, with a warning, if made with other ``settings``."""
    if name is None:
        return {}
    path = find_recorded(name)
    differences = differences_of(name, settings, prompt_with)
    if differences:
        report.warn(f"{path.name} was recorded with {', '.join(differences)}: every reply is generated instead")
        return {}
    replies = {}
    for line in islice(read_jsonl(path), 1, None):
        if line.value is None or not {"id", "prompt_sha", "reply", "finish"} <= line.value.keys():
            raise DataError(
                "recorded-replies",
                line.problem or "not a recorded reply",
                where=line.place,
                fix="record the replies again",
            )
        replies[line.value["id"], line.value["prompt_sha"]] = (line.value["reply"], line.value["finish"])
    return replies


def differences_of(name: str, settings: Mapping[str, Any], prompt_with: PromptWith | None = None) -> list[str]:
    """Why the target would not reply with these ``settings`` as it is recorded; nothing where it would.

    ``prompt_with`` tells a message's prompt with options of the chat template: those that change nothing do not count.
    """
    path = find_recorded(name)
    header = next(read_jsonl(path), None)
    if header is None or header.value is None or "target" not in header.value:
        fix = "make it with: python -m eagle3cli.serving.regenerate.record SHARDS OUTPUT"
        raise DataError(
            "recorded-replies",
            "no recorded replies: the first line does not tell their settings",
            where=str(path),
            fix=fix,
        )
    before = {**HEADER, **header.value}
    now = {**HEADER, **settings}
    options = [before["chat_template_kwargs"], now["chat_template_kwargs"]]
    if prompt_with is not None and options[0] != options[1] and prompt_with(options[0]) == prompt_with(options[1]):
        now["chat_template_kwargs"] = options[0]
    differences = changes(before, now, keys=HEADER, text="{key} {was!r} instead of {now!r}")
    if before["target"] == now["target"] and _other_weights(header.value, now):
        differences.append(f"other weights of {now['target']}")
    return differences


def _other_weights(told: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether a target of the same name is another one: by its .gguf file, whose weights each version of transformers
    writes in another way, or by its weights. Files of before tell neither, and a server that runs not the latter."""
    if told.get("target_source"):
        return bool(told["target_source"] != now.get("target_source"))
    return bool(told.get("target_weights")) and told["target_weights"] != now.get(
        "target_weights", told["target_weights"]
    )


def find_recorded(name: str) -> Path:
    """The file that ``name`` is, or the packaged ``NAME_replies.jsonl.gz``."""
    if Path(name).is_file():
        return Path(name)
    packaged = Path(str(resources.files("eagle3cli") / "data" / f"{name}_replies.jsonl.gz"))
    if packaged.is_file():
        return packaged
    raise UsageError(
        "no-such-path",
        f"no recorded replies {name}",
        where="--recorded",
        fix="give a jsonl file, or leave the flag out",
    )
