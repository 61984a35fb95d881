"""Reasoning in a reply's text: found, kept or taken off, in the ways in which targets mark it."""

from __future__ import annotations

import re
from dataclasses import dataclass

_HARMONY = re.compile(
    r"<\|channel\|>(?P<channel>\w+)(?P<to>[^<]*)(?:<\|constrain\|>\w+\s*)?<\|message\|>"
    r"(?P<text>.*?)(?=<\|end\|>|<\|return\|>|<\|call\|>|<\|start\|>|<\|channel\|>|$)",
    re.DOTALL,
)
_BARE_HARMONY = re.compile(
    r"(?:<\|channel\|>)?analysis(?P<reasoning>.*?)(?:assistantfinal(?P<content>.*))?$", re.DOTALL
)
_BLOCKS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"))


@dataclass(frozen=True)
class ParsedReply:
    """A reply in two parts; ``reasoning`` is None where nothing sets it apart from the content."""

    content: str
    reasoning: str | None = None


def from_harmony(text: str) -> ParsedReply | None:
    """A reply of a harmony model (GPT-OSS), its special tokens shown or dropped; None where it is no such reply.

    The analysis channel is the reasoning, the final channel the content; calls of tools are left out.
    """
    if "<|message|>" in text:
        parts = list(_HARMONY.finditer(text))
        reasoning = "".join(part["text"] for part in parts if part["channel"] == "analysis")
        content = "".join(part["text"] for part in parts if part["channel"] == "final")
        return ParsedReply(content, reasoning or None) if parts else None
    if match := _BARE_HARMONY.match(text):
        return ParsedReply(match["content"] or "", match["reasoning"] or None)
    return ParsedReply(text.removeprefix("final")) if text.startswith("final") else None


def without_reasoning(text: str, *, opened: bool = False) -> str:
    """The answer alone: what stands before ``</think>`` is left out, all of it where the limit cut the reasoning.

    ``opened``: the prompt had begun a block of reasoning already.
    """
    for opening, closing in _BLOCKS:
        if closing in text:
            return text.rpartition(closing)[2].lstrip()
        if re.match(rf"\s*{re.escape(opening)}", text):
            return ""
    return "" if opened else text
