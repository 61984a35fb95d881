"""What a chat template writes around replies, learnt from two tiny renderings."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

from eagle3cli.data.chat.template import Chat, Tools
from eagle3cli.data.chat.turn_ends import Seams, common_suffix, learn_turn_ends
from eagle3cli.errors import ModelError

_WORD = r"(?:think|thought|reason|reflect|analysis|scratchpad)\w*"
"""Words of tags around reasoning. A header may be a tag, too (``<assistant>``), and so may be an end (``</s>``)."""
EMPTY_BLOCK = re.compile(rf"\s*(?:<(\w+)>\s*</\1>|</{_WORD}>|\[THINK\]\s*\[/THINK\])\s*", re.IGNORECASE)
"""A block of reasoning with nothing in it, or the end of one that the header opened: the template's own, which a
server writes for the target when it is not to reason."""
OPEN_BLOCK = re.compile(
    rf"(<((?:[\w.-]+:)?{_WORD}(?::[\w.-]+)?)>|\[THINK\]|<\|START_THINKING\|>)(\s*)\Z", re.IGNORECASE
)
"""The start of a block of reasoning at the end of a prompt: the target writes on from there."""

_PLACEHOLDER = "\ue000{}\ue001"
PROBE_TOOL: Mapping[str, Any] = {
    "type": "function",
    "function": {
        "name": "look",
        "description": "Look for something.",
        "parameters": {
            "type": "object",
            "properties": {"what": {"type": "string", "description": "What to look for."}},
            "required": ["what"],
        },
    },
}
"""For templates that take conversations with tools only."""
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
    ``<|user|>``) or to nobody (then it is eos), and so ends a conversation without it."""
    unended: bool = False
    """The template ends no earlier reply, so that ``unwritten`` stands behind a tool call, too; where it ends some,
    another token may follow a call."""

    def end_at(self, text: str, position: int) -> int:
        """Where the end token behind ``position`` (white space apart) ends; ``position`` itself if there is none."""
        after = position
        while after < len(text) and text[after].isspace():
            after += 1
        end = next((end for end in self.ends if text.startswith(end, after)), None)
        return after + len(end) if end else position

    def stop_before(self, text: str, position: int, limit: int) -> int:
        """Where the first token from ``position`` on at which the target stops ends: a reply's end behind more of the
        template's text. ``position`` where none stands before ``limit``, the next content."""
        places = [(at, -len(stop)) for stop in self.stops if (at := text.find(stop, position, limit)) >= 0]
        return min(places)[0] - min(places)[1] if places else position

    def written_from(self, lead: str, server: str) -> int:
        """Where the target begins to write in ``lead``, what the template has before a reply, which begins as
        ``server``, what a server has there: behind it, behind a header that only the template writes, and behind an
        empty block of reasoning."""
        rest = lead[len(server) :]
        headers = [at + len(header) for header in self.headers if (at := rest.rfind(header)) >= 0]
        after = len(server) + max(headers, default=0)
        return len(lead) if EMPTY_BLOCK.fullmatch(lead, after) else after

    @property
    def headers(self) -> tuple[str, ...]:
        """Headers of replies that are more than white space, a server's first, and last without an empty block."""
        headers = (self.header, self.past_header)
        return tuple(header for header in dict.fromkeys((*headers, *map(without_block, headers))) if header.strip())

    @property
    def reasoning_edge(self) -> tuple[str, str]:
        """What ends a server's header and what ends a past one, where they part: ``<think>`` and ``</think>``."""
        shared = whole_tags(commonprefix([self.header, self.past_header]))
        return self.header[len(shared) :], self.past_header[len(shared) :]

    def first_end(self, text: str, position: int) -> int | None:
        """Where the first end token from ``position`` on begins."""
        return min((at for end in self.ends if (at := text.find(end, position)) >= 0), default=None)


def closing_tag(block: re.Match[str]) -> str:
    """What ends the block of reasoning that `OPEN_BLOCK` found."""
    return f"</{block[2]}>" if block[2] else {"[THINK]": "[/THINK]"}.get(block[1], "<|END_THINKING|>")


def learn_format(chat: Chat, stops: Sequence[str], eos: str = "") -> Format:
    """The template's format; ``stops`` are the texts of the tokens that stop the target by its configuration.

    ``eos`` is the token that ends a reply where the template writes no end. A template that takes conversations with
    tools only is asked with one. Raises ModelError where it refuses a plain turn.
    """
    try:
        return _learn(chat, stops, eos, ())
    except ModelError as error:
        try:
            return _learn(chat, stops, eos, (PROBE_TOOL,))
        except ModelError:
            raise error from None


def learn_turn_end(chat: Chat, stops: Sequence[str]) -> str:
    """The token with which the template ends a conversation's last reply; "" where it writes none."""
    try:
        added = [stop for stop in learn_format(chat, stops).stops if stop not in stops]
    except ModelError:
        return ""
    return added[0] if added else ""


def _learn(chat: Chat, stops: Sequence[str], eos: str, tools: Tools) -> Format:
    special = [token.content for token in chat.tokenizer.added_tokens_decoder.values() if token.special]
    placeholders = [_PLACEHOLDER.format(i) for i in range(4)]
    turns: list[Mapping[str, Any]] = [
        {"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(placeholders)
    ]
    unanswered = chat.render(turns[:1], tools=tools)
    prompt = chat.render(turns[:1], add_generation_prompt=True, tools=tools)
    lead, _, before = prompt.rpartition(placeholders[0])
    first, again, last, tail = _between(chat, turns, placeholders, tools)
    always_open = unanswered == prompt and _always_open(before, again, tail)
    seams = Seams(lead=lead, opening=before, again=again, tail=tail, always_open=always_open)
    turn_ends = learn_turn_ends(seams, special, stops, eos)
    ends = {*turn_ends.stops, turn_ends.last, turn_ends.past, *(token for token in _ALWAYS_END if token in special)}
    ends -= {""}
    header = prompt[len(unanswered) :] if prompt.startswith(unanswered) else ""
    if not header.strip():
        headless = (
            unanswered == prompt and not always_open and first.startswith(before) and first[len(before) :].strip()
        )
        header = "" if headless else before
    header = _without_leading(ends, header)
    closed = before[: len(before) - len(header)] if before.endswith(header) else ""
    past_header = first.removeprefix(closed)
    block = last.removeprefix(closed + header)
    return Format(
        header=header,
        past_header=_past_header(header, past_header),
        block=block if block != last and EMPTY_BLOCK.fullmatch(block) else "",
        closing=turn_ends.last,
        user_header=_without_leading(ends, again),
        ends=tuple(sorted(ends, key=lambda end: (-len(end), end))),
        stops=turn_ends.stops,
        unwritten=turn_ends.unwritten,
        unended=turn_ends.unended,
    )


def _between(chat: Chat, turns: Sequence[Mapping[str, Any]], placeholders: Sequence[str], tools: Tools) -> list[str]:
    """What stands between and behind the texts of two questions and replies; a template that takes no more than one
    turn tells less."""
    try:
        text = chat.render(turns, tools=tools)
    except ModelError:
        turns = turns[:2]
        text = chat.render(turns, tools=tools)
    pieces = re.split("|".join(placeholders), text)[1:]
    if len(pieces) != len(turns):
        raise ModelError(
            "unsupported-template", "the chat template does not write a plain conversation", where="data.chat_template"
        )
    return pieces if len(turns) > 2 else [pieces[0], "", *pieces]


def _always_open(before: str, again: str, tail: str) -> bool:
    """Whether the reply's header that stands behind a question stands behind the last reply, too."""
    return bool(common_suffix(before, tail).strip()) and bool(again) and not again.startswith(tail.rstrip())


def _past_header(header: str, past: str) -> str:
    """The header of a past reply, without what the target wrote behind it (Cohere's ``<|START_RESPONSE|>``)."""
    if not header or past.startswith(header):
        return header or past
    shared = whole_tags(commonprefix([header, past]))
    written = past[len(shared) :]
    return past if not shared.strip() or not written.strip() or EMPTY_BLOCK.fullmatch(written) else shared


def without_block(header: str) -> str:
    """A header without an empty block of reasoning at its end."""
    at = header.rfind("<", 0, header.rfind("</"))
    return header[:at] if at > 0 and EMPTY_BLOCK.fullmatch(header, at) else header


def without_opening(header: str) -> str:
    """A header without the start of a block of reasoning at its end, unless it is nothing else."""
    block = OPEN_BLOCK.search(header)
    return header[: block.start()] if block and header[: block.start()].strip() else header


def whole_tags(prefix: str) -> str:
    """The text without a tag at its end that is not closed."""
    for opening, closing in (("<", ">"), ("[", "]")):
        at = prefix.rfind(opening)
        if at > prefix.rfind(closing):
            prefix = prefix[:at]
    return prefix


def _without_leading(ends: set[str], text: str) -> str:
    start = text.lstrip()
    end = next((end for end in sorted(ends, key=len)[::-1] if start.startswith(end)), None)
    return start[len(end) :].lstrip() if end else text
