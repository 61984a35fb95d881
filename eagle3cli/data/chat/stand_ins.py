"""A conversation in which one message says something else: what stays the same around it is not the message's.

The tool of `eagle3cli.data.chat.oracle`: where messages, headers and ends stand in a rendering, told by rendering it
again with two plain texts in a message's place.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from os.path import commonprefix
from typing import Any

from eagle3cli.data.chat.template import Chat, Messages, Tools
from eagle3cli.errors import ModelError

STAND_INS = ("Qzvaxo7K", "Wyjuke4P")
"""Two texts without a common start or end, in plain letters that no template rewrites."""
_MARK = r"(?:[\w:]*think[\w:]*|reasoning|thought)"
OPENING = re.compile(rf"(?:<{_MARK}>|\[THINK\]|<\|START_THINKING\|>)\s*\Z")
"""The start of a block of reasoning at the end of a prompt; a target writes on from there."""
CLOSING = re.compile(rf"</{_MARK}>|\[/THINK\]|<\|END_THINKING\|>")
EMPTY = re.compile(
    rf"\s*(?:(?:<{_MARK}>\s*)?</{_MARK}>|\[THINK\]\s*\[/THINK\]|<\|START_THINKING\|>\s*<\|END_THINKING\|>)\s*"
)
"""A block of reasoning with nothing in it: the server's, for a target that is not to reason."""


class Unknown(Exception):
    """The oracle cannot tell what the row must be."""


@dataclass(frozen=True)
class Stops:
    """Texts of the tokens at which a target stops by its configuration, and of the tokenizer's special tokens."""

    configured: tuple[str, ...]
    special: tuple[str, ...]
    eos: str = ""

    def first(self, text: str) -> tuple[int, int] | None:
        """Start and end of the first configured stop in ``text``, the longest of those that begin there."""
        places = [(text.find(stop), -len(stop)) for stop in self.configured if stop and stop in text]
        return (min(places)[0], min(places)[0] - min(places)[1]) if places else None

    def shared_end(self, text: str, other: str) -> str:
        """The longest text with which both end that begins inside none of the special tokens of ``text``."""
        at = len(text) - len(common_suffix([text, other]))
        for token in self.special:
            for start in range(max(0, at - len(token) + 1), at):
                if text.startswith(token, start):
                    return text[start + len(token) :]
        return text[at:]

    def closers(self, text: str, most: int = 99) -> int:
        """Length of the special tokens (``most`` of them) with which ``text`` begins, and of white space among them."""
        reached = 0
        for _ in range(most):
            rest = text[reached:]
            start = rest.lstrip()
            token = max((token for token in self.special if token and start.startswith(token)), key=len, default=None)
            if token is None:
                break
            reached += len(rest) - len(start) + len(token)
        return reached


@dataclass(frozen=True)
class Slot:
    """Where a message's text stands in a rendering."""

    start: int
    """Where the texts part; with reasoning or several calls, somewhere in the message."""
    end: int
    lead: str
    """The rendering before a stand-in."""
    tail: str


@dataclass
class Talk:
    """A conversation rendered in one way, and the same with a message that says something else."""

    chat: Chat
    messages: Messages
    tools: Tools
    stops: Stops
    opened: bool = False
    """A reply's header follows the last message."""
    rendered: dict[tuple[str, bool], str] = field(default_factory=dict)
    """Renderings of this conversation and its parts, each made once."""
    text: str = field(init=False)
    _slots: dict[int, Slot | None] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.text = self.render(self.messages)

    def render(self, messages: Messages) -> str:
        """These messages in this conversation's way: with its tools, and a reply's header where it has one."""
        key = (repr(messages), self.opened)
        if key not in self.rendered:
            self.rendered[key] = self.chat.render(messages, self.opened, self.tools)
        return self.rendered[key]

    def upto(self, index: int, *, opened: bool) -> Talk:
        """The messages before ``index``, with a reply's header behind them where ``opened``."""
        return Talk(self.chat, list(self.messages[:index]), self.tools, self.stops, opened, self.rendered)

    def slot(self, index: int) -> Slot:
        """The place of message ``index``; raises Unknown where the template shows it in another way than others."""
        if index not in self._slots:
            self._slots[index] = self._find_slot(index)
        slot = self._slots[index]
        if slot is None:
            raise Unknown(f"message {index + 1}: the template does not show it as it shows others")
        return slot

    def _find_slot(self, index: int) -> Slot | None:
        message = self.messages[index]
        try:
            one, two = (
                self.render([*self.messages[:index], _saying(message, text), *self.messages[index + 1 :]])
                for text in STAND_INS
            )
        except ModelError:
            return None
        lead = commonprefix([one, two])
        tail = common_suffix([one, two])
        if one != lead + STAND_INS[0] + tail:
            return None
        shared = common_suffix([self.text, tail])
        lost = len(tail) - len(shared)
        if lost and (not message.get("tool_calls") or lost > 3):
            return None
        start = len(commonprefix([self.text, lead]))
        end = len(self.text) - len(shared)
        return Slot(start, end, lead, shared) if start <= end else None

    def start_of(self, index: int) -> tuple[int, int]:
        """Where what the target wrote of reply ``index`` begins: at the latest, and at the earliest.

        An empty block of reasoning is the server's; white space behind it, or its end alone, is anyone's.
        """
        start = self._header_end(index)
        message = self.messages[index]
        content = (message["content"] or "").strip()
        visible = CLOSING.split(content)[-1].strip()
        said = (content, visible, reasoning_of(message).strip())
        for header in self._asked_headers():
            inside = self.text.startswith(header, start) and start + len(header) <= self.slot(index).end
            if inside and not any(text.startswith(header.strip()) for text in said):
                raise Unknown(f"message {index + 1}: history has a header that a server's prompt does not")
        slot = self.slot(index)
        if message.get("tool_calls"):
            block = None if EMPTY.match(content) else EMPTY.match(self.text, start)
            text = block[0] if block else ""
        else:
            text = slot.lead[start:] if slot.lead.startswith(self.text[:start]) else ""
            text = text if EMPTY.fullmatch(text) else ""
        if not text:
            return start, start
        text = text if self.text.startswith(text, start) else text.rstrip()
        behind = start + len(text)
        # Has the message a block itself? One that a prompt opened is in history the template's, who writes it anew.
        own = EMPTY.match(content) is not None and not self.upto(index, opened=True).opens_reasoning()
        texts = (content, *(content[end.end() :].lstrip() for end in CLOSING.finditer(content)))
        shown = self.text[behind : slot.end].strip()
        if not self.text.startswith(text, start) or not (
            message.get("tool_calls") or shown.startswith(content if own else texts)
        ):
            if own or visible or self.text[start : slot.end].strip() != text.strip():
                return start, start
            return slot.end, slot.end
        whose = text.strip().startswith(("</", "<|"))  # its end alone, or tokens: a target may write these itself
        return behind, start if whose else start + len(text.rstrip())

    def _header_end(self, index: int) -> int:
        """Where the header of reply ``index`` ends: what a server's prompt has behind the message before."""
        if index == 0:
            raise Unknown("the first message is a reply")
        before = self.upto(index, opened=True)
        own, *others = before.headers()
        if own and self.text.startswith(before.text):
            return len(before.text)
        at = self.slot(index - 1).end
        headers = (own, *others)
        for header in (*headers, *map(without_block, headers)):
            if header.strip() and self.text.startswith(header, at):
                return at + len(header)
        asked = without_opening(self.asks())
        gap, matched, _ = self.text[at : self.slot(index).end].partition(asked or "\0")
        if matched and self.stops.closers(gap) == len(gap):  # what a prompt has behind a question, behind other ends
            return at + len(gap) + len(asked)
        message = self.messages[index]
        slot = self.slot(index)
        spaced = slot.lead[at:].split() in [header.split() for header in (own, *others)]
        plain = not message.get("tool_calls") and not reasoning_of(message)
        if plain and spaced and self.text.startswith(slot.lead):
            return len(slot.lead)
        raise Unknown(f"message {index + 1}: history has another header than a server's prompt")

    def opens_reasoning(self) -> bool:
        """Whether this prompt ends with the start of a block of reasoning."""
        return without_opening(self.text) != self.text

    def headers(self) -> list[str]:
        """What stands behind the last message of this prompt, and what history has of it: before a last reply, and
        before one that another question follows. The first is "" where the template writes no header into prompts."""
        last = len(self.messages) - 1
        own = self.slot(last).tail
        headers = [own]
        for follow in ([], [_message("user", STAND_INS[0])]):
            try:
                one, two = (self.closed([_message("assistant", text), *follow]) for text in STAND_INS)
                lead = commonprefix([one.text, two.text])[one.slot(last).end :]
            except (ModelError, Unknown):
                continue
            if not self._opens_replies(own, lead):
                headers[0] = ""
                headers.append(lead[: self._asked_header(lead)] or lead)
                continue
            if "".join(own.split()) == "".join(lead.split()):
                headers.append(lead)
                continue  # history has other white space than a prompt
            shared = commonprefix([own, lead])
            if shared not in (own, lead):
                mark = max(shared.rfind("<"), shared.rfind("["))
                cut = mark if mark >= 0 and not re.search(r"[>\]]", shared[mark:]) else len(shared)
                bare = without_opening(own)
                shared = bare if lead.startswith(bare) else shared[:cut]
            headers.append(shared)
        return list(dict.fromkeys(headers))

    def closed(self, more: Messages) -> Talk:
        """The conversation with more messages, and no reply's header behind them."""
        return Talk(self.chat, [*self.messages, *more], self.tools, self.stops, rendered=self.rendered)

    def _opens_replies(self, own: str, lead: str) -> bool:
        """Whether this prompt, which ends with ``own``, has the header of a reply, if the template writes any."""
        if self.messages[last := len(self.messages) - 1]["role"] == "assistant":
            asked = self.asked()
            shared = self.stops.shared_end(asked, self.text[self.slot(last).end :])
            if asked.strip() and not shared.strip() and self._asked_header(lead):
                return False
        if self.text != self.closed([]).text or not own.strip():
            return True
        if lead.startswith(own) and not lead[len(own) :].strip():
            return True
        try:
            asked = self.closed([_message("user", STAND_INS[0])]).text
        except ModelError:
            return False
        return not asked.startswith(self.text)

    def asked(self) -> str:
        """What stands behind a plain question in a server's prompt; "" where that is refused."""
        try:
            return Talk(self.chat, [_message("user", STAND_INS[0])], self.tools, self.stops, True).slot(0).tail
        except (ModelError, Unknown):
            return ""

    def asks(self) -> str:
        """The part of it that only asks for a reply; all of it where a conversation without a request has it, too."""
        asked = self.asked()
        closed = Talk(self.chat, [_message("user", STAND_INS[0])], self.tools, self.stops).slot(0).tail if asked else ""
        return asked.removeprefix(closed) or asked

    def _asked_headers(self) -> list[str]:
        """The same from each of its special tokens on."""
        asked = self.asked()
        return [asked[at:] for at in range(len(asked)) if asked.startswith(tuple(filter(None, self.stops.special)), at)]

    def _asked_header(self, lead: str) -> int:
        """Where a reply's header as a plain question has it ends in ``lead``; 0 where it does not stand there."""
        asked = self.asked()
        parts = [asked[at:] for at in range(len(asked)) if asked[at:].strip() and asked[at:] in lead]
        return lead.rfind(parts[0]) + len(parts[0]) if parts else 0

    def end_of(self, index: int) -> int:
        """Where the text of reply ``index`` ends, before any token that ends the turn."""
        return self.slot(index).end

    def closing(self, index: int) -> str:
        """What the template writes between reply ``index`` and the next message, or the text's end."""
        end = self.end_of(index)
        after = index + 1
        if after == len(self.messages):
            return self.text[end:]
        stop = self._header_end(after) if self.messages[after]["role"] == "assistant" else self.slot(after).start
        if stop < end:
            raise Unknown(f"message {index + 1}: the template moves what follows it")
        return self.text[end:stop]


def _saying(message: Mapping[str, Any], text: str) -> dict[str, Any]:
    """The message with another text at its end: its content, or an argument of its last call."""
    calls = message.get("tool_calls")
    if not calls:
        return {**message, "content": text}
    function = calls[-1]["function"]
    arguments = f'{{"a": "{text}"}}' if isinstance(function["arguments"], str) else {"a": text}
    return {**message, "tool_calls": [*calls[:-1], {**calls[-1], "function": {**function, "arguments": arguments}}]}


def _message(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def reasoning_of(message: Mapping[str, Any]) -> str:
    """What the target thought, from the field or the content; "" where nothing."""
    reasoning = str(message.get("reasoning_content") or "")
    if reasoning.strip():
        return reasoning
    before, closed, _ = str(message["content"] or "").partition("</think>")
    return before.rpartition("<think>")[2].strip() if closed else ""


def without_opening(text: str) -> str:
    """A prompt without the start of a block of reasoning at its end."""
    return text[: match.start()] if (match := OPENING.search(text)) else text


def without_block(text: str) -> str:
    """A header without an empty block of reasoning at its end."""
    at = max(text.rfind(start) for start in ("<think>", "[THINK]", "<|START_THINKING|>"))
    return text[:at] if at >= 0 and EMPTY.fullmatch(text[at:]) else text


def common_suffix(texts: Sequence[str]) -> str:
    """The longest text with which all of them end."""
    return commonprefix([text[::-1] for text in texts])[::-1]
