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
from dataclasses import dataclass, field
from os.path import commonprefix
from typing import Any

from eagle3cli.data.chat.format import EMPTY_BLOCK, OPEN_BLOCK, Format, closing_tag, whole_tags
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
    text = _with_unwritten_end(probe, text, spans, len(messages) - 1 in cut)
    indices = sorted(spans.replies)[-1:] if last_only else sorted(spans.replies)
    replies = []
    for index in indices:
        start, end = spans.replies[index]
        _check_header(form, text[start:end], probe.messages[index], index)
        replies.append((start, end if index in cut else _reply_end(form, text, spans, index)))
    return Rendered(text, tuple(replies), tuple(_turns(probe, text, spans)))


def _check_header(form: Format, reply: str, message: Mapping[str, Any], index: int) -> None:
    """Raise DataError where what would be trained begins with the header of a reply: where a prompt behind a tool's
    result has none and history does, the target may have written it or not."""
    header = form.header.strip()
    content = message["content"] or ""
    said = (content, content.rpartition("</think>")[2], message.get("reasoning_content") or "")
    if header and reply.lstrip().startswith(header) and not any(text.lstrip().startswith(header) for text in said):
        raise DataError(f"message {index + 1}: the chat template shows a header that a server's prompt does not")


def _reply_end(form: Format, text: str, spans: MessageSpans, index: int) -> int:
    """Where reply ``index`` ends, its end token included."""
    end = spans.replies[index][1]
    after = form.end_at(text, end)
    if after > end:
        return after
    starts = [start for start, _ in (*spans.replies.values(), *spans.others.values()) if start >= end]
    return form.stop_before(text, end, min(starts, default=len(text)))


def _with_unwritten_end(probe: Probe, text: str, spans: MessageSpans, is_cut: bool) -> str:
    """The text with the end of its last reply, where the template writes none there; a reply that ``is_cut`` has none,
    and nothing follows it."""
    last = len(probe.messages) - 1
    form = probe.form
    if last not in spans.replies or (probe.messages[last].get("tool_calls") and not form.unended):
        return text
    end = spans.replies[last][1]
    is_ended = not form.unwritten or _reply_end(form, text, spans, last) > end
    return text if is_ended else text[:end] + ("" if is_cut else form.unwritten)


def _served_rendering(probe: Probe) -> tuple[str, MessageSpans]:
    """The row's text as a server would show it, and the spans in it."""
    whole = probe.render()
    in_blocks = probe.chat.has_generation_blocks(probe.tools)
    spans = _find_by_generation_blocks(probe, whole) if in_blocks else _find_by_placeholders(probe, whole)
    last = len(probe.messages) - 1
    if probe.messages[last]["role"] != "assistant" or (spans and _continues(probe)):
        return whole, spans or find_by_surroundings(probe, whole)
    before = probe.before(last)
    prompt = before.render()
    spans = spans or find_by_surroundings(probe, whole)
    if in_blocks and (last not in spans.replies or not _opens_lost_reasoning(prompt, probe.messages[last], whole)):
        return whole, spans
    trained = set(spans.replies)
    if last not in spans.replies:  # it says nothing, and the template leaves it out
        content = probe.messages[last]["content"]
        spans = _find_spans(before, prompt)
        spans.replies[last] = (len(prompt), len(prompt) + len(content))
        return prompt + content + probe.form.closing, spans
    start, end = spans.replies[last]
    closing = whole[end : _reply_end(probe.form, whole, spans, last)]
    continues = whole.startswith(prompt)
    start = _start_behind(prompt, whole, start, probe.form) if continues else start
    reply = None
    if continues and _opens_lost_reasoning(prompt, probe.messages[last], whole):
        reply = probe.messages[last]["reasoning_content"].strip(NEWLINE) + whole[len(prompt) : end]
    elif not continues or start == len(prompt):  # else the template wrote an empty block of reasoning itself
        reply = _generated_reply(prompt, probe.messages[last], whole[start:end], continues)
    if reply is None:
        spans.replies[last] = (start, end)
        return whole, spans
    header = probe.form.header.strip()
    if probe.messages[last - 1]["role"] == "assistant" and not prompt.rstrip().endswith(header):
        raise DataError(f"message {last + 1}: a server's prompt asks for no second reply in a row")
    spans = _find_spans(before, prompt)
    spans = MessageSpans({i: span for i, span in spans.replies.items() if i in trained}, spans.others)
    spans.replies[last] = (len(prompt), len(prompt) + len(reply))
    return prompt + reply + closing, spans


def _opens_lost_reasoning(prompt: str, message: Mapping[str, Any], whole: str) -> bool:
    """Whether a server's prompt begins a block of reasoning, which ``whole``, the conversation's rendering, does not
    show, or shows with nothing in it behind that prompt: the target wrote its reasoning there."""
    block = OPEN_BLOCK.search(prompt)
    if block is None:
        return False
    reasoning = str(message.get("reasoning_content") or "").strip()
    if whole.startswith(prompt):
        return bool(reasoning) and whole[len(prompt) :].lstrip().startswith(closing_tag(block))
    before, closed, _ = str(message["content"] or "").partition(closing_tag(block))
    reasoning = reasoning or (before.lstrip().removeprefix(block[1]).strip() if closed else "")
    shown = whole[len(commonprefix([whole, prompt])) :]
    return bool(reasoning) and "".join(reasoning.split()) not in "".join(shown.split())


def _start_behind(prompt: str, whole: str, start: int, form: Format) -> int:
    """Where the target begins to write in ``whole``, which goes on from the prompt."""
    if not form.header or start <= len(prompt):
        return max(start, len(prompt))
    return form.written_from(whole[:start], prompt)


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
        if lost and not skipped:
            return content
        return None if continues else rendered
    opening = block[1]
    space = block[3]
    closing = closing_tag(block)
    if not continues and closing in rendered and rendered.lstrip().startswith(opening):
        return _without_shared_space(rendered.lstrip()[len(opening) :], space)
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


def _without_shared_space(text: str, space: str) -> str:
    """The text without the white space at its start that stands in ``space`` already."""
    return text[len(commonprefix([text, space])) :]


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


@dataclass(frozen=True)
class _Skeleton:
    """A rendering with a placeholder for every content, which all conversations of the same roles share."""

    text: str
    pieces: Pieces
    """The text, split at its placeholders."""
    leads: dict[int, str | None] = field(default_factory=dict)
    """By reply: what a server writes between the content before it and the reply; None where that cannot be told."""


def _skeleton(probe: Probe, placeholders: Placeholders) -> _Skeleton:
    """The probe's skeleton; raises ModelError where the template refuses it."""
    messages = probe.messages
    plain = all(message.keys() <= _PLAIN_KEYS for message in messages)
    roles = tuple((message["role"], bool(message.get("reasoning_content"))) for message in messages)
    key = (probe.add_generation_prompt, placeholders, roles, json.dumps(probe.tools) if probe.tools else "")
    cache: dict[Any, _Skeleton] = probe.chat.placeholder_renderings
    if plain and key in cache:
        return cache[key]
    substituted = []
    for index, message in enumerate(messages):
        changed = {**message, "content": placeholders.name(index, CONTENT)}
        if message.get("reasoning_content"):
            changed["reasoning_content"] = placeholders.name(index, REASONING)
        substituted.append(changed)
    text = probe.render(substituted)
    skeleton = _Skeleton(text, placeholders.split(text, CONTENT + REASONING))
    if plain:
        if len(cache) >= _MOST_RENDERINGS:
            cache.clear()
        cache[key] = skeleton
    return skeleton


def _server_lead(probe: Probe, placeholders: Placeholders, skeleton: _Skeleton, index: int) -> str | None:
    """What a server writes between the last content before reply ``index`` and the reply."""
    if index not in skeleton.leads:
        try:
            pieces = _skeleton(probe.before(index), placeholders).pieces
        except ModelError:
            pieces = Pieces((), ())
        before = [name for name in skeleton.pieces.names if name[0] < index]
        skeleton.leads[index] = pieces.texts[-1] if pieces.names[-1:] == tuple(before[-1:]) and pieces.texts else None
    return skeleton.leads[index]


def _continues(probe: Probe) -> bool:
    """Whether the rendering of a conversation of these roles is the server's prompt for its last reply and what the
    target wrote behind it."""
    placeholders = Placeholders(*DELIMITERS[0])
    last = len(probe.messages) - 1
    try:
        skeleton = _skeleton(probe, placeholders)
        prompt = _skeleton(probe.before(last), placeholders).text
    except ModelError:
        return False
    if not skeleton.text.startswith(prompt):
        return False
    block = OPEN_BLOCK.search(prompt)
    message = probe.messages[last]
    dropped = message.get("reasoning_content") and (last, REASONING) not in skeleton.pieces.names
    return block is None or not (dropped or message["content"].lstrip().startswith(block[1]))


def _find_by_placeholders(probe: Probe, text: str) -> MessageSpans | None:
    """The replies, if the template writes every content of this conversation as it writes a placeholder."""
    placeholders = unused_placeholders(text)
    messages = probe.messages
    if placeholders is None or any(message.get("tool_calls") for message in messages):
        return None
    try:
        skeleton = _skeleton(probe, placeholders)
    except ModelError:
        return None
    pieces = skeleton.pieces
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
            server = _server_lead(probe, placeholders, skeleton, index)
            header = _header_end(lead, server, probe.form, kind == REASONING)
            if header is None:
                return None
            begun = server[len(lead) :] if server and header == len(lead) and server.startswith(lead) else ""
            written = len(begun) if text.startswith(begun, start, end) else 0  # by the prompt, which begins the content
            spans.replies[index] = (start - len(lead) + header + written, end)
    return spans


def _renderings(message: Mapping[str, Any], kind: str) -> Sequence[str]:
    if kind == REASONING:
        return renderings_of(message["reasoning_content"])
    return renderings_of(message["content"], quoted=message["role"] == "tool")


def _header_end(lead: str, server: str | None, form: Format, reasons: bool) -> int | None:
    """Where the header of a reply ends in the text before its content (or, ``reasons``, before its reasoning).

    ``server`` is what a server writes there: what goes on from it is the target's.
    """
    if form.header and server is not None and lead.startswith(server):
        return form.written_from(lead, server)
    after = next((at + len(header) for header in form.headers if (at := lead.rfind(header)) >= 0), 0)
    if not after and form.header:
        after = len(whole_tags(commonprefix([lead, server or ""])))
    if not lead[:after].strip():
        return None
    return len(lead) if not reasons and EMPTY_BLOCK.fullmatch(lead, after) else after


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
