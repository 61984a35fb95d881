"""Where in a rendered conversation the target's replies stand, to the character.

A reply is what the target writes after the header that the chat template gives it, up to and including the token that
ends the turn. A row is what a server would show at the last turn: the template's whole rendering where that goes on
from the server's prompt, else (templates that drop reasoning or move the system prompt) the prompt and the reply.

Replies are spans in two exact ways, and a row that neither can follow is rejected with the reason:

- *placeholders*: the conversation is rendered a second time with a placeholder for every content. If the template's own
  pieces and the contents together give the first rendering, all places are known. (`_find_by_placeholders`)
- *surroundings*: where the template looks into replies (drops reasoning, writes tool calls), placeholders stand for
  the contents around them only, and a reply is what stands between header and end. (`eagle3cli.data.chat.surroundings`)

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
    DELIMITERS,
    REASONING,
    Pieces,
    Placeholders,
    Span,
    align,
    renderings_of,
    unused_placeholders,
)
from eagle3cli.data.chat.surroundings import MessageSpans, Probe, find_by_surroundings
from eagle3cli.data.chat.template import Chat, Messages, Tools
from eagle3cli.errors import DataError, ModelError

_PLAIN_KEYS = {"role", "content", "reasoning_content"}
_MOST_RENDERINGS = 1000
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
        probe = Probe(chat, chat.adapt_tool_calls(messages, tools), tools, form)
        text, spans = _served_rendering(probe)
    except ModelError as error:
        raise DataError(error.what) from error
    if len(messages) - 1 not in cut:
        text = _with_unwritten_end(probe, text, spans)
    indices = sorted(spans.replies)[-1:] if last_only else sorted(spans.replies)
    replies = []
    for index in indices:
        start, end = spans.replies[index]
        replies.append((start, end if index in cut else form.end_at(text, end)))
    return Rendered(text, tuple(replies), tuple(_turns(probe, text, spans)))


def _with_unwritten_end(probe: Probe, text: str, spans: MessageSpans) -> str:
    """The text with the end of its last reply, where the template leaves that to a next turn."""
    last = len(probe.messages) - 1
    unwritten = probe.form.unwritten
    calls = probe.messages[last].get("tool_calls")  # behind a call another token may follow
    if not unwritten or calls or last not in spans.replies:
        return text
    end = spans.replies[last][1]
    return text if text[end:].strip() else text[:end] + unwritten


def _served_rendering(probe: Probe) -> tuple[str, MessageSpans]:
    """The row's text as a server would show it, and the spans in it."""
    whole = probe.render()
    if probe.chat.has_generation_blocks(probe.tools):
        return whole, _find_by_generation_blocks(probe, whole)
    spans = _find_by_placeholders(probe, whole)
    last = len(probe.messages) - 1
    if probe.messages[last]["role"] != "assistant" or (spans and _continues(probe)):
        return whole, spans or find_by_surroundings(probe, whole)
    before = probe.before(last)
    prompt = before.render()
    spans = spans or find_by_surroundings(probe, whole)
    start, end = spans.replies[last]
    closing = whole[end : probe.form.end_at(whole, end)]
    continues = whole.startswith(prompt)
    start = max(start, len(prompt)) if continues else start
    reply = None
    if not continues or start == len(prompt):  # else the template wrote an empty block of reasoning itself
        reply = _generated_reply(prompt, probe.messages[last], whole[start:end], continues)
    if reply is None:
        spans.replies[last] = (start, end)
        return whole, spans
    spans = _find_spans(before, prompt)
    spans.replies[last] = (len(prompt), len(prompt) + len(reply))
    return prompt + reply + closing, spans


def _find_spans(probe: Probe, text: str) -> MessageSpans:
    return _find_by_placeholders(probe, text) or find_by_surroundings(probe, text)


def _generated_reply(prompt: str, message: Mapping[str, Any], rendered: str, continues: bool) -> str | None:
    """The last reply as the target wrote it behind ``prompt``, where the whole rendering does not show it so.

    ``rendered`` is the reply in the whole rendering, which begins with the prompt where ``continues``. A server's
    prompt may open a block of reasoning: a message without any then stays where the template shows it.
    """
    content = str(message["content"] or "")
    reasoning = str(message.get("reasoning_content") or "")
    block = OPEN_BLOCK.search(prompt)
    if block is None:
        thought, closing, _ = content.partition("</think>")
        lost = closing and thought.rpartition("<think>")[2].strip() and closing not in rendered
        skipped = prompt.rstrip().endswith("</think>") or message.get("tool_calls")
        return content if lost and not skipped else None if continues else rendered
    opening = block[1]
    space = block[3]
    closing = f"</{block[2]}>" if block[2] else "[/THINK]"
    if reasoning.strip() and closing not in rendered:
        return f"{reasoning.strip(NEWLINE)}\n{closing}\n\n{rendered.lstrip(NEWLINE)}"
    if content.lstrip().startswith(opening) and rendered.strip().startswith(content.strip()):
        # The prompt has written the opening already.
        return rendered.lstrip()[len(opening) :].removeprefix(space)
    if continues or message.get("tool_calls") and closing not in rendered:
        return None
    if closing in rendered:
        return rendered
    if content.lstrip().startswith(opening):
        return content.lstrip()[len(opening) :].removeprefix(space)
    return content if closing in content else None


def _find_by_generation_blocks(probe: Probe, whole: str) -> MessageSpans:
    """Replies of a template with ``{% generation %}`` blocks: what lies outside them is none, and where nothing else
    tells the spans, the blocks do."""
    blocks = probe.chat.generation_spans(probe.messages, probe.tools)
    try:
        spans = _find_spans(probe, whole)
    except DataError:
        bare = [_bare_reply(probe.form, whole, span) for span in blocks]
        replies = [i for i, message in enumerate(probe.messages) if message["role"] == "assistant"]
        if len(bare) != len(replies):
            raise
        return MessageSpans(dict(zip(replies, bare, strict=True)), {})
    inside = {i: span for i, span in spans.replies.items() if any(a <= span[1] and span[0] < b for a, b in blocks)}
    return MessageSpans(inside, spans.others)


def _bare_reply(form: Format, text: str, span: Span) -> Span:
    """A span without the header before the reply and the end token behind it."""
    start, end = span
    header = next((h for h in (form.header, form.past_header) if h and text.startswith(h, start)), "")
    start += len(header)
    while end > start and text[end - 1].isspace():
        end -= 1
    closing = next((token for token in form.ends if text.endswith(token, start, end)), "")
    return (start, end - len(closing)) if closing else (start, max(start, span[1]))


def _placeholder_rendering(probe: Probe, placeholders: Placeholders) -> tuple[str, Pieces]:
    """The probe with a placeholder for every content, which all conversations of the same roles share: whole and split.

    Raises ModelError where the template refuses it.
    """
    messages = probe.messages
    plain = all(message.keys() <= _PLAIN_KEYS for message in messages)
    roles = tuple((message["role"], bool(message.get("reasoning_content"))) for message in messages)
    key = (probe.add_generation_prompt, placeholders, roles, json.dumps(probe.tools) if probe.tools else "")
    cache: dict[Any, tuple[str, Pieces]] = probe.chat.placeholder_renderings
    if plain and key in cache:
        return cache[key]
    substituted = []
    for index, message in enumerate(messages):
        changed = {**message, "content": placeholders.name(index, CONTENT)}
        if message.get("reasoning_content"):
            changed["reasoning_content"] = placeholders.name(index, REASONING)
        substituted.append(changed)
    text = probe.render(substituted)
    rendering = (text, placeholders.split(text, CONTENT + REASONING))
    if plain:
        if len(cache) >= _MOST_RENDERINGS:
            cache.clear()
        cache[key] = rendering
    return rendering


def _continues(probe: Probe) -> bool:
    """Whether the rendering of a conversation of these roles is the server's prompt for its last reply and what the
    target wrote behind it."""
    placeholders = Placeholders(*DELIMITERS[0])
    last = len(probe.messages) - 1
    try:
        whole, pieces = _placeholder_rendering(probe, placeholders)
        prompt, _ = _placeholder_rendering(probe.before(last), placeholders)
    except ModelError:
        return False
    if not whole.startswith(prompt):
        return False
    block = OPEN_BLOCK.search(prompt)
    message = probe.messages[last]
    dropped = message.get("reasoning_content") and (last, REASONING) not in pieces.names
    return block is None or not (dropped or message["content"].lstrip().startswith(block[1]))


def _find_by_placeholders(probe: Probe, text: str) -> MessageSpans | None:
    """The replies, if the template writes every content of this conversation as it writes a placeholder."""
    placeholders = unused_placeholders(text)
    messages = probe.messages
    if placeholders is None or any(message.get("tool_calls") for message in messages):
        return None
    try:
        _, pieces = _placeholder_rendering(probe, placeholders)
    except ModelError:
        return None
    missing = set(range(len(messages))) - {index for index, kind in pieces.names if kind == CONTENT}
    if len(set(pieces.names)) != len(pieces.names) or any(messages[i]["role"] == "assistant" for i in missing):
        return None
    places = align(text, pieces.texts, [_renderings(messages[i], kind) for i, kind in pieces.names])
    if places is None:
        return None
    spans = MessageSpans({}, {})
    for (index, kind), lead, (start, end) in zip(pieces.names, pieces.texts, places, strict=False):
        if messages[index]["role"] != "assistant":
            spans.others[index] = (start, end)
        elif index in spans.replies:
            spans.replies[index] = (spans.replies[index][0], end)
        else:
            header = _header_end(lead, probe.form, kind == REASONING)
            if header is None:
                return None
            spans.replies[index] = (start - len(lead) + header, end)
    return spans


def _renderings(message: Mapping[str, Any], kind: str) -> Sequence[str]:
    if kind == REASONING:
        return renderings_of(message["reasoning_content"])
    return renderings_of(message["content"], quoted=message["role"] == "tool")


def _header_end(lead: str, form: Format, reasons: bool) -> int | None:
    """Where the header of a reply ends in the text before its content (or, ``reasons``, before its reasoning)."""
    for header in (form.header, form.past_header):
        at = lead.rfind(header)
        if at >= 0 and header:
            after = at + len(header)
            return len(lead) if not reasons and EMPTY_BLOCK.fullmatch(lead, after) else after
    return None


def _turns(probe: Probe, text: str, spans: MessageSpans) -> list[tuple[int, str]]:
    """Where each message begins, with its role; a system prompt of the template's own is one too."""
    places = sorted((span, index) for index, span in (spans.replies | spans.others).items())
    turns: list[tuple[int, str]] = []
    reached = 0
    for (start, end), index in places:
        role = probe.messages[index]["role"]
        turns.append((_turn_start(text, reached, start, probe.form, role), role))
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
