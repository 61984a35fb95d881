"""Where in a rendered conversation the target's replies stand, to the character.

A reply is what the target writes after the header that the chat template gives it, up to and including the token that
ends the turn. Two exact ways, and a row that neither can follow is rejected:

- *markers*: the conversation is rendered a second time with a unique marker in place of every content. The text between
  the markers is the template's own; if it and the contents together give the first rendering, all places are known.
- *prefixes*: templates that look into the contents (drop reasoning, write tool calls) are followed message by message:
  the conversation up to a reply, rendered with the reply's header, must be a prefix of the whole.

Text inside a content that looks like a header or an end token never makes or ends a reply.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eagle3cli.errors import DataError, ModelError

Messages = Sequence[Mapping[str, Any]]
Render = Callable[[Messages, bool], str]
"""(messages, with a reply's header at the end) -> text; raises ModelError where the template refuses."""

_MARKS = (("\ue000", "\ue001"), ("\uf8f0", "\uf8f1"), ("\U000f0000", "\U000f0001"))


@dataclass(frozen=True)
class Rendered:
    """A conversation as text. Spans and turns are character positions."""

    text: str
    replies: tuple[tuple[int, int], ...]
    """Start and end of each reply, end token included (where the target wrote it)."""
    turns: tuple[tuple[int, str], ...]
    """Start and role of each message, header included."""


@dataclass(frozen=True)
class Format:
    """What a chat template writes around replies, learnt from two tiny renderings."""

    header: str
    """The text right before a reply, e.g. ``<|im_start|>assistant\\n``."""
    ends: tuple[str, ...]
    """Texts of the tokens that end a turn, longest first."""

    def end_at(self, text: str, position: int) -> int:
        """Where the end token behind ``position`` (white space apart) ends; ``position`` itself if there is none."""
        after = position
        while after < len(text) and text[after].isspace():
            after += 1
        end = next((end for end in self.ends if text.startswith(end, after)), None)
        return after + len(end) if end else position

    def first_end(self, text: str, position: int) -> int | None:
        """Where the first end token from ``position`` on begins."""
        found = [at for end in self.ends if (at := text.find(end, position)) >= 0]
        return min(found, default=None)


def learn_format(render: Render, ends: Sequence[str]) -> Format:
    """The template's format; ``ends`` are the texts of the target's end tokens.

    Raises ModelError where the template refuses a plain turn.
    """
    user: list[Mapping[str, Any]] = [{"role": "user", "content": "\ue000"}]
    plain, opened = render(user, False), render(user, True)
    header = opened[len(plain) :] if opened.startswith(plain) else ""
    if not header.strip():
        header = opened.rpartition("\ue000")[2]
    return Format(header, tuple(sorted({end for end in ends if end}, key=lambda end: (-len(end), end))))


def find_replies(
    render: Render, messages: Messages, form: Format, *, cut: frozenset[int] = frozenset(), last_only: bool = False
) -> Rendered:
    """Render the conversation and find its replies.

    ``cut`` holds the message indices whose reply stopped at a length limit: the target never wrote their end token.
    Raises DataError where the template refuses the row or the places cannot be told exactly.
    """
    try:
        text = render(messages, False)
        found = _by_markers(render, messages, text, form) or _by_prefixes(render, messages, text, form)
    except ModelError as error:
        raise DataError(error.what) from error
    spans, turns = found
    wanted = {max(spans)} if last_only and spans else set(spans)
    replies = []
    for index in sorted(wanted):
        start, end = spans[index]
        replies.append((start, end if index in cut else form.end_at(text, end)))
    roles = sorted((at, messages[index]["role"]) for index, at in turns.items())
    if roles and roles[0][0] > 0:
        roles.insert(0, (0, "system"))  # the template's own system prompt
    return Rendered(text, tuple(replies), tuple(roles))


Found = tuple[dict[int, tuple[int, int]], dict[int, int]]
"""By message index: (start, end without the end token) of replies, and the start of every message."""


def _by_markers(render: Render, messages: Messages, text: str, form: Format) -> Found | None:
    if any(message.get("tool_calls") for message in messages):
        return None
    marks = next((pair for pair in _MARKS if pair[0] not in text and pair[1] not in text), None)
    if marks is None:
        return None
    keys = ("content", "reasoning_content")
    originals: dict[str, str] = {}
    marked = []
    for index, message in enumerate(messages):
        changed = dict(message)
        for key in keys:
            if isinstance(message.get(key), str) and (key == "content" or message[key]):
                name = f"{marks[0]}{index}{key[0]}{marks[1]}"
                originals[name] = message[key]
                changed[key] = name
        marked.append(changed)
    pieces = re.split(f"({marks[0]}\\d+[cr]{marks[1]})", render(marked, False))
    names = pieces[1::2]
    if len(set(names)) != len(names) or any(name[-2] == "c" and name not in names for name in originals):
        return None
    places = _walk(text, pieces[0::2], [originals.get(name) for name in names])
    if places is None:
        return None
    spans: dict[int, tuple[int, int]] = {}
    turns: dict[int, int] = {}
    reached = 0
    for name, (start, end) in zip(names, places, strict=True):
        index = int(name[1:-2])
        reply = messages[index]["role"] == "assistant"
        if index not in turns:
            turns[index] = _turn_start(text, reached, start, form, messages[index]["role"])
        if reply:
            opening = _reply_start(text, reached, start, form, name[-2] == "r")
            spans[index] = (spans[index][0] if index in spans else opening, end)
        reached = end
    return spans, turns


def _walk(text: str, template: list[str], contents: list[str | None]) -> list[tuple[int, int]] | None:
    """Places of the contents in ``text``, if template pieces and contents give exactly that text."""
    if not text.startswith(template[0]):
        return None
    places: list[tuple[int, int]] = []
    position = len(template[0])
    for content, following in zip(contents, template[1:], strict=True):
        if content is None:
            return None
        forms = dict.fromkeys(
            (content, content.strip(), content.rstrip(), content.lstrip(), content.strip("\n"), content.lstrip("\n"))
        )
        last = len(places) == len(contents) - 1
        written = next(
            (
                form
                for form in forms
                if text.startswith(form, position)
                and text.startswith(following, position + len(form))
                and (not last or position + len(form) + len(following) == len(text))
            ),
            None,
        )
        if written is None:
            return None
        places.append((position, position + len(written)))
        position += len(written) + len(following)
    return places


def _reply_start(text: str, reached: int, start: int, form: Format, reasoning: bool) -> int:
    """After the reply's header; text that the template puts between header and content (an empty reasoning block) is
    not the target's unless it leads to the message's own reasoning."""
    at = text.rfind(form.header, reached, start) if form.header else -1
    after = at + len(form.header) if at >= 0 else start
    return after if reasoning or not text[after:start].strip() else start


def _turn_start(text: str, reached: int, start: int, form: Format, role: str) -> int:
    """Start of the message whose content begins at ``start``, after a content that ended at ``reached``."""
    if reached == 0:
        ends = [at for end in form.ends if role != "system" and (at := text.rfind(end, 0, start)) >= 0]
        return _next_turn(text, max(ends), form) if ends else 0
    at = text.rfind(form.header, reached, start) if role == "assistant" and form.header else -1
    return max(at, min(start, _next_turn(text, reached, form)))


def _by_prefixes(render: Render, messages: Messages, text: str, form: Format) -> Found:
    spans: dict[int, tuple[int, int]] = {}
    turns: dict[int, int] = {0: 0}
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            before = _try(render, messages[:index], False) if index else ""
            if before and text.startswith(before):
                turns[index] = len(before)
            elif index - 1 in spans:
                turns[index] = _next_turn(text, spans[index - 1][1], form)
            continue
        opened = _try(render, messages[:index], True)
        if not opened or not text.startswith(opened):
            what = (
                f"message {index + 1}: the chat template rewrites what comes before the reply, so its place is unknown"
            )
            raise DataError(what)
        spans[index] = _follow(text, len(opened), index, message, form)
        turns[index] = len(opened) - len(form.header) if opened.endswith(form.header) else len(opened)
    return spans, turns


def _next_turn(text: str, reached: int, form: Format) -> int:
    """Start of the message after the one whose content ends at ``reached``."""
    ended = form.end_at(text, reached)
    return len(text) - len(text[ended:].lstrip())


def _try(render: Render, messages: Messages, opened: bool) -> str:
    """A part of the conversation, or "" where the template wants the whole."""
    try:
        return render(messages, opened)
    except ModelError:
        return ""


def _follow(text: str, start: int, index: int, message: Mapping[str, Any], form: Format) -> tuple[int, int]:
    own = [message["content"], message.get("reasoning_content") or ""]
    calls = json.dumps(message.get("tool_calls") or [], ensure_ascii=False)
    if any(end in part for end in form.ends for part in (*own, calls)):
        raise DataError(
            f"message {index + 1}: the reply holds the text of an end token and the chat template rewrites it"
        )
    end = form.first_end(text, start)
    if end is None:
        raise DataError(f"message {index + 1}: the chat template writes no end of turn after the reply")
    written, content = text[start:end], own[0].strip()
    names = [str((call.get("function") or call).get("name", "")) for call in message.get("tool_calls") or ()]
    if any(name not in written for name in names):
        raise DataError(f"message {index + 1}: the chat template does not write tool calls")
    if content and not written.strip():
        raise DataError(f"message {index + 1}: the chat template leaves the reply out")
    if message.get("tool_calls") or own[1] or written.strip() in content:
        return start, end
    answer = content.rpartition("</think>")[2].strip() if "</think>" in content else content
    at = written.rfind(answer)
    if at < 0 or written[at + len(answer) :].strip():
        raise DataError(f"message {index + 1}: the chat template rewrites the reply")
    carried = "".join(written[:at].split()) in "".join(content.split())
    return (start if carried else start + at), end
