"""Replies that teach a draft little: cut by the length limit, going round in a loop, or refusing. Dropped on demand."""

from __future__ import annotations

import re
import zlib
from collections.abc import Collection
from typing import Literal

from eagle3cli.data.conversations.conversation import Conversation

Unwanted = Literal["truncated", "loops", "refusals"]

LOOP_WINDOWS = (1_000, 4_000, 16_000)
"""Bytes at the end of a reply that are looked at; a loop goes on to the end, where the length limit stops it."""
LOOP_RATIO = 0.08
"""A window that deflates to less than this share of itself repeats itself; prose takes .4, code .2, data files .1."""
REFUSAL_CHARACTERS = 240
"""A refusal says so at the beginning."""

_CANNOT = (
    r"(?:can(?:no|'|’)?t|can not|won['’]t|will not|(?:am|['’]m) (?:not able|unable|not allowed|not permitted)(?: to)?)"
)
_HELP = (
    r"(?:help|assist|comply|fulfil|fulfill|provide|create|generate|write|engage|participate|support|answer|discuss|"
    r"share|offer|give|produce|continue|do (?:that|this)|access|browse|open|view|watch|see|perform|process|complete)"
)
_ENGLISH = (
    rf"\b(?:sorry|apologi[sz]e|apologies|regret|afraid|unfortunately)\b[^.!?\n]{{0,80}}\bI\s?{_CANNOT}\s+(?:\w+\s+)?{_HELP}\b",
    rf"^\W*I\s?{_CANNOT}\s+(?:\w+\s+)?(?:{_HELP})\b[^.!?\n]{{0,60}}\b(?:that|this|request|with|illegal|harmful|you)\b",
    rf"\bas an? (?:AI|artificial intelligence|(?:large )?language model)\b[^.!?\n]{{0,80}}\bI\s?{_CANNOT}\b",
    r"\b(?:against|violat\w+) (?:my|our|openai['’]s) (?:\w+ )?(?:policy|policies|guidelines|programming|principles)\b",
)
_OTHERS = (
    r"(?:抱歉|对不起|很遗憾)[^。！？\n]{0,30}(?:无法|不能|没法|不可以)",
    r"作为一?[个名款]?(?:AI|人工智能|语言模型)[^。！？\n]{0,30}(?:无法|不能)",
    r"(?:申し訳|すみません)[^。\n]{0,40}(?:できません|できかねます)",
    r"죄송(?:합니다|하지만)[^.\n]{0,40}(?:할 수 없|드릴 수 없|도와드릴 수 없)",
    r"\b(?:tut mir leid|entschuldigung|bedaure)\b[^.!?\n]{0,60}\bich (?:kann|darf)\b[^.!?\n]{0,60}\bnicht\b",
    r"\bd[ée]sol[ée]e?\b[^.!?\n]{0,60}\bje ne (?:peux|suis) pas\b",
    r"\b(?:lo siento|lo lamento)\b[^.!?\n]{0,60}\bno (?:puedo|me es posible)\b",
    r"\b(?:desculpe|lamento|sinto muito)\b[^.!?\n]{0,60}\bnão posso\b",
    r"\bmi dispiace\b[^.!?\n]{0,60}\bnon posso\b",
    r"(?:извините|простите|сожалею|к сожалению)[^.!?\n]{0,60}\bя? ?не могу",
)
_REFUSAL = re.compile("|".join((*_ENGLISH, *_OTHERS)), re.IGNORECASE)


def unwanted_kinds(truncated: bool, loops: bool, refusals: bool) -> list[Unwanted]:
    """The kinds that options ask to drop."""
    kinds: tuple[tuple[Unwanted, bool], ...] = (("truncated", truncated), ("loops", loops), ("refusals", refusals))
    return [kind for kind, enabled in kinds if enabled]


def unwanted_reply(conversation: Conversation, unwanted: Collection[Unwanted]) -> str:
    """Why a reply of the conversation is not wanted; empty where all are."""
    if "truncated" in unwanted and "length" in conversation.finish:
        return "a reply was cut at the length limit"
    for message in conversation.messages:
        if message["role"] == "assistant":
            if "loops" in unwanted and is_loop(message["content"]):
                return "a reply goes round in a loop"
            if "refusals" in unwanted and is_refusal(message["content"]):
                return "a reply is a refusal"
    return ""


def is_loop(text: str) -> bool:
    """Whether the text says the same over and over in one of the windows at its end."""
    data = text.encode("utf-8", "replace")
    for window in LOOP_WINDOWS:
        tail = data[-window:]
        if len(tail) >= LOOP_WINDOWS[0] // 2 and len(zlib.compress(tail, 1)) < LOOP_RATIO * len(tail):
            return True
        if window >= len(data):
            break
    return False


def is_refusal(text: str) -> bool:
    """Whether the text begins by declining what was asked (English, and the usual phrases of nine other languages)."""
    return _REFUSAL.search(text[:REFUSAL_CHARACTERS]) is not None
