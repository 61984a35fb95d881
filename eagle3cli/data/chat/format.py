"""What a chat template writes around replies, learnt from two tiny renderings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eagle3cli.data.chat.template import Chat
from eagle3cli.errors import ModelError

EMPTY_BLOCK = re.compile(r"\s*(?:<(\w+)>\s*</\1>|</\w+>|\[THINK\]\s*\[/THINK\])\s*")
"""A block of reasoning with nothing in it, or the end of one that the header opened: the template's own, which a
server writes for the target when it is not to reason."""
OPEN_BLOCK = re.compile(r"(<(\w+)>|\[THINK\])(\s*)\Z")
"""The start of a block of reasoning at the end of a prompt: the target writes on from there."""

_PLACEHOLDER = "\ue000{}\ue001"
_ALWAYS_END = ("<|call|>", "<|eom_id|>", "<|eom|>")
"""Tokens that end a turn with a tool call, and nothing else, in every format that has them."""


@dataclass(frozen=True)
class Format:
    """The text around replies. ``ends`` are the texts of the tokens that end a turn, longest first."""

    header: str
    """Right before a reply in a server's prompt, e.g. ``<|im_start|>assistant\\n``."""
    past_header: str
    """The same before a reply that others follow; some templates open a block of reasoning only in the prompt."""
    block: str
    """An empty block of reasoning that the template writes before a last reply that has none."""
    closing: str
    """What ends a conversation's last reply: an end token, or "" where the template writes none."""
    user_header: str
    """Right before a user's text, e.g. ``<|im_start|>user\\n``."""
    ends: tuple[str, ...]
    stops: tuple[str, ...]
    """Those of ``ends`` at which the target stops. At another (harmony's ``<|end|>``) it may go on by itself."""
    unwritten: str = ""
    """What the target writes at the end of a reply, where the template leaves that to the next turn (GLM's
    ``<|user|>``) and so ends a conversation without it."""

    def end_at(self, text: str, position: int) -> int:
        """Where the end token behind ``position`` (white space apart) ends; ``position`` itself if there is none."""
        after = position
        while after < len(text) and text[after].isspace():
            after += 1
        end = next((end for end in self.ends if text.startswith(end, after)), None)
        return after + len(end) if end else position

    def first_end(self, text: str, position: int) -> int | None:
        """Where the first end token from ``position`` on begins."""
        return min((at for end in self.ends if (at := text.find(end, position)) >= 0), default=None)


def learn_format(chat: Chat, stops: Sequence[str]) -> Format:
    """The template's format; ``stops`` are the texts of the tokens at which the target stops.

    Raises ModelError where the template refuses a plain turn.
    """
    special = sorted((t.content for t in chat.tokenizer.added_tokens_decoder.values() if t.special), key=len)[::-1]
    placeholders = [_PLACEHOLDER.format(i) for i in range(4)]
    turns: list[Mapping[str, Any]] = [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(placeholders)
    ]
    unanswered = chat.render(turns[:1])
    prompt = chat.render(turns[:1], add_generation_prompt=True)
    before = prompt.rpartition(placeholders[0])[2]
    first, again, last, tail = _between(chat, turns, placeholders)
    past_closing = _closing(special, stops, again)
    closing = past_closing if tail.lstrip().startswith(past_closing) else _leading(special, tail)
    ends = {*stops, closing, past_closing, *(token for token in _ALWAYS_END if token in special)} - {""}
    header = prompt[len(unanswered) :] if prompt.startswith(unanswered) else ""
    header = header if header.strip() else _without_leading(ends, before)
    closed = before[: len(before) - len(header)] if before.endswith(header) else ""
    past_header = first.removeprefix(closed)
    block = last.removeprefix(closed + header)
    return Format(
        header=header,
        past_header=header if header and past_header.startswith(header) else past_header,
        block=block if block != last and EMPTY_BLOCK.fullmatch(block) else "",
        closing=closing,
        user_header=_without_leading(ends, again),
        ends=tuple(sorted(ends, key=lambda end: (-len(end), end))),
        stops=tuple(stop for stop in stops if stop),
        unwritten=past_closing if not closing and past_closing in stops else "",
    )


def _between(chat: Chat, turns: Sequence[Mapping[str, Any]], placeholders: Sequence[str]) -> list[str]:
    """What stands between and behind the texts of two questions and replies; a template that takes no more than one
    turn tells less."""
    try:
        text = chat.render(turns)
    except ModelError:
        turns = turns[:2]
        text = chat.render(turns)
    pieces = re.split("|".join(placeholders), text)[1:]
    if len(pieces) != len(turns):
        raise ModelError("the chat template does not write a plain conversation", where="data.chat_template")
    return pieces if len(turns) > 2 else [pieces[0], "", *pieces]


def _closing(special: Sequence[str], stops: Sequence[str], text: str) -> str:
    """What ends the past reply before ``text``: a special token, and with it the one at which the target stops where
    that follows at once (Cohere's ``<|END_RESPONSE|><|END_OF_TURN_TOKEN|>``)."""
    end = _leading(special, text)
    after = text.lstrip()[len(end) :]
    return end + next((stop for stop in stops if end and stop and after.startswith(stop)), "")


def _leading(tokens: Sequence[str], text: str) -> str:
    """The special token with which ``text`` begins, white space apart."""
    start = text.lstrip()
    return next((token for token in tokens if start.startswith(token)), "")


def _without_leading(ends: set[str], text: str) -> str:
    start = text.lstrip()
    end = next((end for end in sorted(ends, key=len)[::-1] if start.startswith(end)), None)
    return start[len(end) :].lstrip() if end else text
