"""Replies by placeholders: a rendering with one in every content shows where a template writes each of them."""

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
    align,
    renderings_of,
    unused_placeholders,
)
from eagle3cli.data.chat.probe import MessageSpans, Probe
from eagle3cli.errors import ModelError

_PLAIN_KEYS = {"role", "content", "reasoning_content"}
_MOST_RENDERINGS = 1000


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


def continues_prompt(probe: Probe) -> bool:
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
    thinks = block is not None and (block[1] in message["content"] or closing_tag(block) in message["content"])
    return block is None or not (dropped or thinks)


def find_by_placeholders(probe: Probe, text: str) -> MessageSpans | None:
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
