"""Replies that were recorded earlier: used where they are exactly what the target would write now.

A recorded file (jsonl, also gzip) starts with a line of settings, ``{"target", "max_tokens", "temperature", ...}``;
each other line is a reply to a first message: ``{"id", "prompt_sha", "reply", "finish"}``. It is made by
``python -m eagle3cli.serving.regenerate.record``.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from importlib import resources
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


Recorded = Mapping[tuple[str, str], tuple[str, str]]
"""Text and finish of replies, by row id and hash of the first message."""


def find_reply(recorded: Recorded, row_id: str, prompt: list[Message]) -> tuple[str, str] | None:
    """Text and finish of the reply to ``prompt``, if it is a lone user message that was recorded."""
    if len(prompt) != 1 or prompt[0]["role"] != "user":
        return None
    return recorded.get((row_id, prompt_sha(prompt[0]["content"])))


def prompt_sha(text: str) -> str:
    """The first 16 hex digits of a message's SHA-256."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def load_recorded(name: str | None, settings: Mapping[str, Any], report: Reporter) -> Recorded:
    """The replies of a file or of a packaged name; none, with a warning, if made with other ``settings``."""
    if name is None:
        return {}
    path = find_recorded(name)
    lines = read_jsonl(path)
    header = next(lines, None)
    if header is None or header.value is None or "target" not in header.value:
        fix = "make it with: python -m eagle3cli.serving.regenerate.record SHARDS OUTPUT"
        raise DataError("no recorded replies: the first line does not tell their settings", where=str(path), fix=fix)
    before = {**HEADER, **header.value}
    differences = changes(before, {**HEADER, **settings}, keys=HEADER, text="{key} {was!r} instead of {now!r}")
    if differences:
        report.warn(f"{path.name} was recorded with {', '.join(differences)}: every reply is generated instead")
        return {}
    replies = {}
    for line in lines:
        if line.value is None or not {"id", "prompt_sha", "reply", "finish"} <= line.value.keys():
            raise DataError(line.problem or "not a recorded reply", where=line.place, fix="record the replies again")
        replies[line.value["id"], line.value["prompt_sha"]] = (line.value["reply"], line.value["finish"])
    return replies


def recorded_target(name: str) -> str:
    """The target that wrote the replies of a file or of a packaged name; empty where its first line does not tell."""
    header = next(read_jsonl(find_recorded(name)), None)
    return str((header.value or {}).get("target", "")) if header is not None else ""


def find_recorded(name: str) -> Path:
    """The file that ``name`` is, or the packaged ``NAME_replies.jsonl.gz``."""
    if Path(name).is_file():
        return Path(name)
    packaged = Path(str(resources.files("eagle3cli") / "data" / f"{name}_replies.jsonl.gz"))
    if packaged.is_file():
        return packaged
    raise UsageError(f"no recorded replies {name}", where="--recorded", fix="give a jsonl file, or leave the flag out")
