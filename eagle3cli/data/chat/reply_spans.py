"""Where in a rendered conversation the target's replies stand, to the character.

A reply is what the target writes after the header that the chat template gives it, up to and including the token that
ends the turn. A row is what a server would show at the last turn: the template's whole rendering where that goes on
from the server's prompt, else (templates that drop reasoning or move the system prompt) the prompt and the reply.

Replies are spans in two exact ways, and a row that neither can follow is rejected with the reason:

- *placeholders*: the conversation is rendered a second time with a placeholder for every content. If the template's own
  pieces and the contents together give the first rendering, all places are known. (`eagle3cli.data.chat.skeletons`)
- *surroundings*: where the template looks into replies (drops reasoning, writes tool calls), placeholders stand for
  the contents around them only, and a reply is what stands between header and end. (`eagle3cli.data.chat.surroundings`)

Text inside a content that looks like a header or an end token never makes or ends a reply.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eagle3cli.data.chat.format import Format
from eagle3cli.data.chat.placeholders import Span
from eagle3cli.data.chat.probe import MessageSpans, Probe
from eagle3cli.data.chat.served import served_rendering
from eagle3cli.data.chat.template import Chat, Messages, Tools
from eagle3cli.errors import DataError, ModelError


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
        text, spans = served_rendering(probe)
    except ModelError as error:
        raise DataError(error.code, error.message) from error
    text = _with_unwritten_end(probe, text, spans, len(messages) - 1 in cut)
    indices = sorted(spans.replies)[-1:] if last_only else sorted(spans.replies)
    replies = []
    for index in indices:
        start, end = spans.replies[index]
        _check_header(form, text[start:end], probe.messages[index], index)
        replies.append((start, end if index in cut else spans.end_of(index, text, form)))
    return Rendered(text, tuple(replies), tuple(_turns(probe, text, spans)))


def _check_header(form: Format, reply: str, message: Mapping[str, Any], index: int) -> None:
    """Raise DataError where what would be trained begins with the header of a reply: where a prompt behind a tool's
    result has none and history does, the target may have written it or not."""
    header = form.header.strip()
    content = message["content"] or ""
    said = (content, content.rpartition("</think>")[2], message.get("reasoning_content") or "")
    if header and reply.lstrip().startswith(header) and not any(text.lstrip().startswith(header) for text in said):
        raise DataError(
            "header-differs", f"message {index + 1}: the chat template shows a header that a server's prompt does not"
        )


def _with_unwritten_end(probe: Probe, text: str, spans: MessageSpans, is_cut: bool) -> str:
    """The text with the end of its last reply, where the template writes none there; a reply that ``is_cut`` has none,
    and nothing follows it."""
    last = len(probe.messages) - 1
    form = probe.form
    if last not in spans.replies or (probe.messages[last].get("tool_calls") and not form.unended):
        return text
    end = spans.replies[last][1]
    is_ended = not form.unwritten or spans.end_of(last, text, form) > end
    return text if is_ended else text[:end] + ("" if is_cut else form.unwritten)


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
