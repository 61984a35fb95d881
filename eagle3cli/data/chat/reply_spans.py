"""Where in a rendered conversation the target's replies stand, to the character.

A reply is what the target writes after the header that the chat template gives it, up to and including the token that
ends the turn. A row is what a server would show at the last turn: the template's whole rendering where that goes on
from the server's prompt, else (templates that drop reasoning or move the system prompt) the prompt and the reply.

Replies are found in two exact ways, and a row that neither can follow is rejected with the reason:

- *marks*: the conversation is rendered a second time with a mark in place of every content. If the template's own
  pieces and the contents together give the first rendering, all places are known. (`_by_marks`)
- *neighbours*: where the template looks into replies (drops reasoning, writes tool calls), only the contents around
  them are marked, and a reply is what stands between header and end. (`eagle3cli.data.chat.surroundings`)

Text inside a content that looks like a header or an end token never makes or ends a reply.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eagle3cli.data.chat.format import EMPTY_BLOCK, OPEN_BLOCK, Format
from eagle3cli.data.chat.placeholders import (
    CONTENT,
    MARK_PAIRS,
    REASONING,
    Marks,
    Pieces,
    Span,
    align,
    forms_of,
    free_marks,
)
from eagle3cli.data.chat.surroundings import Found, Talk, by_neighbours
from eagle3cli.data.chat.template import Chat, Messages, Tools
from eagle3cli.errors import DataError, ModelError

_PLAIN_KEYS = {"role", "content", "reasoning_content"}
_MOST_SHAPES = 1000
NEWLINE = "\n"


@dataclass(frozen=True)
class Rendered:
    """A conversation as text. Spans and turns are character positions."""

    text: str
    replies: tuple[Span, ...]
    """Start and end of each reply, end token included (where the target wrote it)."""
    turns: tuple[tuple[int, str], ...]
    """Start and role of each message, header included."""


def find_replies(
    chat: Chat,
    messages: Messages,
    form: Format,
    *,
    tools: Tools = (),
    cut: frozenset[int] = frozenset(),
    last_only: bool = False,
) -> Rendered:
    """Render the conversation and find its replies.

    ``cut`` holds the message indices whose reply stopped at a length limit: the target never wrote their end token.
    Raises DataError where the template refuses the row or the places cannot be told exactly.
    """
    try:
        talk = Talk(chat, chat.settle(messages, tools), tools, form)
        text, found = _as_served(talk)
    except ModelError as error:
        raise DataError(error.what) from error
    if len(messages) - 1 not in cut:
        text = _with_unwritten_end(talk, text, found)
    wanted = {max(found.spans)} if last_only and found.spans else set(found.spans)
    replies = []
    for index in sorted(wanted):
        start, end = found.spans[index]
        replies.append((start, end if index in cut else form.end_at(text, end)))
    return Rendered(text, tuple(replies), tuple(_turns(talk, text, found)))


def _with_unwritten_end(talk: Talk, text: str, found: Found) -> str:
    """The text with the end of its last reply, where the template leaves that to a next turn."""
    last, unwritten = len(talk.messages) - 1, talk.form.unwritten
    calls = talk.messages[last].get("tool_calls")  # behind a call another token may follow
    if not unwritten or calls or last not in found.spans:
        return text
    end = found.spans[last][1]
    return text if text[end:].strip() else text[:end] + unwritten


def _as_served(talk: Talk) -> tuple[str, Found]:
    """The row's text, and what stands where in it."""
    whole = talk.render()
    if talk.chat.marks_replies(talk.tools):
        return whole, _as_the_template_marks(talk, whole)
    found = _by_marks(talk, whole)
    last = len(talk.messages) - 1
    if talk.messages[last]["role"] != "assistant" or (found and _continues(talk)):
        return whole, found or by_neighbours(talk, whole)
    before = talk.before(last)
    prompt = before.render()
    found = found or by_neighbours(talk, whole)
    start, end = found.spans[last]
    closing = whole[end : talk.form.end_at(whole, end)]
    continues = whole.startswith(prompt)
    start = max(start, len(prompt)) if continues else start
    said = None
    if not continues or start == len(prompt):  # else the template wrote an empty block of reasoning itself
        said = _as_emitted(prompt, talk.messages[last], whole[start:end], continues)
    if said is None:
        found.spans[last] = (start, end)
        return whole, found
    found = _located(before, prompt)
    found.spans[last] = (len(prompt), len(prompt) + len(said))
    return prompt + said + closing, found


def _located(talk: Talk, text: str) -> Found:
    return _by_marks(talk, text) or by_neighbours(talk, text)


def _as_emitted(prompt: str, message: Mapping[str, Any], shown: str, continues: bool) -> str | None:
    """The last reply as the target wrote it behind ``prompt``, where the whole rendering does not show it so.

    ``shown`` is the reply in the whole rendering, which begins with the prompt where ``continues``. A server's prompt
    may open a block of reasoning: a message without any then stays where the template shows it.
    """
    content, reasoning = str(message["content"] or ""), str(message.get("reasoning_content") or "")
    block = OPEN_BLOCK.search(prompt)
    if block is None:
        thought, closing, _ = content.partition("</think>")
        lost = closing and thought.rpartition("<think>")[2].strip() and closing not in shown
        skipped = prompt.rstrip().endswith("</think>") or message.get("tool_calls")
        return content if lost and not skipped else None if continues else shown
    opening, space = block[1], block[3]
    closing = f"</{block[2]}>" if block[2] else "[/THINK]"
    if reasoning.strip() and closing not in shown:
        return f"{reasoning.strip(NEWLINE)}\n{closing}\n\n{shown.lstrip(NEWLINE)}"
    if content.lstrip().startswith(opening) and shown.strip().startswith(content.strip()):
        # The prompt has written the opening already.
        return shown.lstrip()[len(opening) :].removeprefix(space)
    if continues or message.get("tool_calls") and closing not in shown:
        return None
    if closing in shown:
        return shown
    if content.lstrip().startswith(opening):
        return content.lstrip()[len(opening) :].removeprefix(space)
    return content if closing in content else None


def _as_the_template_marks(talk: Talk, whole: str) -> Found:
    """Replies of a template that marks them itself: what lies outside its marks is none, and where nothing else tells
    the places, the marks do."""
    marked = talk.chat.replies(talk.messages, talk.tools)
    try:
        found = _located(talk, whole)
    except DataError:
        spans = [_bare_reply(talk.form, whole, span) for span in marked]
        replies = [i for i, message in enumerate(talk.messages) if message["role"] == "assistant"]
        if len(spans) != len(replies):
            raise
        return Found(dict(zip(replies, spans, strict=True)), {})
    inside = {i for i, (start, end) in found.spans.items() if any(a <= end and start < b for a, b in marked)}
    return Found({i: span for i, span in found.spans.items() if i in inside}, found.places)


def _bare_reply(form: Format, text: str, span: Span) -> Span:
    """A span without the header before the reply and the end token behind it."""
    start, end = span
    header = next((h for h in (form.header, form.past_header) if h and text.startswith(h, start)), "")
    start += len(header)
    while end > start and text[end - 1].isspace():
        end -= 1
    closing = next((token for token in form.ends if text.endswith(token, start, end)), "")
    return (start, end - len(closing)) if closing else (start, max(start, span[1]))


@dataclass(frozen=True)
class _Shape:
    """A conversation of marks alone, which all conversations of the same roles share."""

    text: str
    pieces: Pieces


def _shape(talk: Talk, marks: Marks) -> _Shape:
    """The talk with a mark in place of every content; raises ModelError where the template refuses it."""
    messages = talk.messages
    plain = all(message.keys() <= _PLAIN_KEYS for message in messages)
    roles = tuple((message["role"], bool(message.get("reasoning_content"))) for message in messages)
    key = (talk.opened, marks, roles, json.dumps(talk.tools) if talk.tools else "")
    known: dict[Any, _Shape] = talk.chat.shapes
    if plain and key in known:
        return known[key]
    marked = []
    for index, message in enumerate(messages):
        changed = {**message, "content": marks.name(index, CONTENT)}
        if message.get("reasoning_content"):
            changed["reasoning_content"] = marks.name(index, REASONING)
        marked.append(changed)
    text = talk.render(marked)
    shape = _Shape(text, marks.cut(text, CONTENT + REASONING))
    if plain:
        if len(known) >= _MOST_SHAPES:
            known.clear()
        known[key] = shape
    return shape


def _continues(talk: Talk) -> bool:
    """Whether the rendering of a conversation of this shape is the server's prompt for its last reply and what the
    target wrote behind it."""
    marks, last = Marks(*MARK_PAIRS[0]), len(talk.messages) - 1
    try:
        shape, prompt = _shape(talk, marks), _shape(talk.before(last), marks)
    except ModelError:
        return False
    if not shape.text.startswith(prompt.text):
        return False
    block, message = OPEN_BLOCK.search(prompt.text), talk.messages[last]
    dropped = message.get("reasoning_content") and (last, REASONING) not in shape.pieces.names
    return block is None or not (dropped or message["content"].lstrip().startswith(block[1]))


def _by_marks(talk: Talk, text: str) -> Found | None:
    """The replies, if the template writes every content of this conversation as it writes a mark."""
    marks = free_marks(text)
    messages = talk.messages
    if marks is None or any(message.get("tool_calls") for message in messages):
        return None
    try:
        pieces = _shape(talk, marks).pieces
    except ModelError:
        return None
    missing = set(range(len(messages))) - {index for index, kind in pieces.names if kind == CONTENT}
    if len(set(pieces.names)) != len(pieces.names) or any(messages[i]["role"] == "assistant" for i in missing):
        return None
    spans = align(text, pieces.texts, [_forms(messages[i], kind) for i, kind in pieces.names])
    if spans is None:
        return None
    found = Found({}, {})
    for (index, kind), lead, (start, end) in zip(pieces.names, pieces.texts, spans, strict=False):
        if messages[index]["role"] != "assistant":
            found.places[index] = (start, end)
        elif index in found.spans:
            found.spans[index] = (found.spans[index][0], end)
        else:
            header = _header_end(lead, talk.form, kind == REASONING)
            if header is None:
                return None
            found.spans[index] = (start - len(lead) + header, end)
    return found


def _forms(message: Mapping[str, Any], kind: str) -> Sequence[str]:
    if kind == REASONING:
        return forms_of(message["reasoning_content"])
    return forms_of(message["content"], quoted=message["role"] == "tool")


def _header_end(lead: str, form: Format, reasons: bool) -> int | None:
    """Where the header of a reply ends in the text before its content (or, ``reasons``, before its reasoning)."""
    for header in (form.header, form.past_header):
        at = lead.rfind(header)
        if at >= 0 and header:
            after = at + len(header)
            return len(lead) if not reasons and EMPTY_BLOCK.fullmatch(lead, after) else after
    return None


def _turns(talk: Talk, text: str, found: Found) -> list[tuple[int, str]]:
    """Where each message begins, with its role; a system prompt of the template's own is one too."""
    places = sorted((span, index) for index, span in (found.spans | found.places).items())
    turns: list[tuple[int, str]] = []
    reached = 0
    for (start, end), index in places:
        role = talk.messages[index]["role"]
        turns.append((_turn_start(text, reached, start, talk.form, role), role))
        reached = end
    if turns and turns[0][0] > 0:
        turns.insert(0, (0, "system"))
    return turns


def _turn_start(text: str, reached: int, start: int, form: Format, role: str) -> int:
    """Start of the message whose content begins at ``start``, after a content that ended at ``reached``."""
    if reached == 0:
        ends = [at for end in form.ends if role != "system" and (at := text.rfind(end, 0, start)) >= 0]
        return min(start, _next_turn(text, max(ends), form)) if ends else 0
    header = form.header if role == "assistant" else ""
    at = text.rfind(header, reached, start) if header else -1
    return max(at, min(start, _next_turn(text, reached, form)))


def _next_turn(text: str, reached: int, form: Format) -> int:
    """Start of the message after the one whose content ends at ``reached``."""
    ended = form.end_at(text, reached)
    return len(text) - len(text[ended:].lstrip())
