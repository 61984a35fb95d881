"""What a row must be, told a second time: by a server's prompts, not by places in one rendering.

The rule of the stable prefix: before a reply a server shows ``messages[:i]`` with a generation prompt. What the
conversation's rendering has behind that prompt, up to the token at which the target stops, is what the target wrote.
Where a template rewrites history (drops reasoning, opens a block of it only in the prompt), the pieces are told apart
by letting a message say two other things: what stays the same before and behind them is not the message's.

Nothing of the encoder's is used here but the template: two ways that agree are seldom wrong alike.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import Any

from eagle3cli.data.chat.stand_ins import (
    CLOSING,
    EMPTY,
    OPENING,
    STAND_INS,
    Stops,
    Talk,
    Unknown,
    reasoning_of,
    without_opening,
)
from eagle3cli.data.chat.template import Chat, Messages, Tools
from eagle3cli.errors import DataError, ModelError

_OPENED = re.compile(rf"\A\s*{OPENING.pattern[:-2]}")


@dataclass(frozen=True)
class Written:
    """One reply in the row's text: from ``start`` to one of ``ends`` (where two are as good, both)."""

    index: int
    start: int
    ends: tuple[int, ...]
    earliest: int
    """From here on tokens may be trained: before ``start`` stands what a server or the target may have written."""


@dataclass(frozen=True)
class Truth:
    """The row's text, as far as a server or the target wrote it, and the replies in it."""

    text: str
    replies: tuple[Written, ...]
    prompt: int
    """Length of what a server shows before the last reply; all of the text where the conversation ends otherwise."""
    rest: str = ""
    """What the row may have behind ``text``, which the target did not write."""
    optional: str = ""
    """What may stand behind ``text`` and may not: a stop where the template ends a call with nothing, and the end of a
    call that broke off."""
    loose: bool = False
    """The template does not show the last reply as it was written: white space around its parts is anyone's guess."""


def truth_of(
    chat: Chat, messages: Messages, stops: Stops, *, tools: Tools = (), cut: frozenset[int] = frozenset()
) -> Truth:
    """What the row of this conversation must be. ``cut`` holds indices of replies that broke off at a length limit.

    Raises Unknown with the reason where two readings are possible, and where the template refuses the conversation.
    """
    try:
        talk = Talk(chat, list(chat.adapt_tool_calls(messages, tools)), tools, stops)
        return _truth(talk, cut)
    except (ModelError, DataError) as error:
        raise Unknown(error.message) from error


def _truth(talk: Talk, cut: frozenset[int]) -> Truth:
    replies = [i for i, message in enumerate(talk.messages) if message["role"] == "assistant"]
    last = len(talk.messages) - 1
    if last not in replies:
        return Truth(talk.text, tuple(_past(talk, i, cut) for i in replies), len(talk.text))
    context = talk.upto(last, opened=True)
    ending = _cut_ending(talk, last) if last in cut else _ending(talk, last)
    _check_shown(talk, last)
    text = talk.text[: ending.at] + ending.stop
    rest = talk.text[len(text) :] if talk.text.startswith(text) else ""
    message = talk.messages[last]
    reasoning = _written_reasoning(message, context.text)
    opened = without_opening(context.text) != context.text
    shown = talk.text[len(context.text) : ending.at]
    amiss = _lost(reasoning, _inline(message), shown, opened)
    amiss = amiss or (opened and (_OPENED.match(shown) is not None or _is_closed_twice(message, shown)))
    if not talk.text.startswith(context.text) or amiss:
        return _rewritten(talk, context, reasoning, Truth(text, (), 0, rest, ending.optional), ending.stop, cut)
    start, earliest = talk.start_of(last)
    past = [_past(context, i, cut) for i in replies[:-1]]
    written = Written(last, start, _ends(text, ending.optional), earliest)
    return Truth(text, (*past, written), len(context.text), rest, ending.optional)


def _ends(text: str, optional: str) -> tuple[int, ...]:
    return tuple(sorted({len(text), len(text + optional)}))


def _rewritten(talk: Talk, context: Talk, reasoning: str, truth: Truth, stop: str, cut: frozenset[int]) -> Truth:
    """The truth where the conversation's rendering is not the server's prompt and what the target wrote behind it."""
    prompt = context.text
    last = len(talk.messages) - 1
    replies = [i for i, message in enumerate(context.messages) if message["role"] == "assistant"]
    opened = without_opening(prompt) != prompt
    if talk.messages[last - 1]["role"] == "assistant" and not context.headers()[0]:
        raise Unknown(f"message {last + 1}: a server's prompt asks for no second reply in a row")
    opening = _only_in_prompts(context)
    asks = context.asks()
    known = not opening or asks.endswith(opening) or _is_complete(opening.removesuffix(asks), talk.stops)
    if not opened and not known:
        raise Unknown("the prompt ends with something that history does not have")
    start, earliest = _shown_from(talk, last)
    begun = OPENING.search(prompt)
    content = _inline(talk.messages[last])
    closing = _end_of_block(begun[0].strip()) if begun else "</think>"
    begins = begun is not None and content.lstrip().startswith((begun[0].strip(), closing))
    if opened and not reasoning and not begins:  # the target would have reasoned: the row is as the template shows it
        silent = not talk.messages[last]["content"] and not talk.messages[last].get("tool_calls")
        if silent and not talk.text.startswith(talk.slot(last).lead):
            raise Unknown(f"message {last + 1}: it says nothing, and the template leaves out what it has before others")
        past = [_past(talk, i, cut) for i in replies]
        written = Written(last, start, _ends(truth.text, truth.optional), earliest)
        return replace(truth, replies=(*past, written), prompt=earliest)
    shown = truth.text[start:].removesuffix(stop)
    shown = shown if opened else _without_block_of(prompt, shown)
    hidden = begins and closing in content and closing not in shown
    if _lost(reasoning, content, shown, opened) or hidden:
        inline = content.lstrip().removeprefix(begun[0].strip() if begun else "")
        shown = inline if closing in content else f"{reasoning}{closing}" + _without_empty(shown)
    elif opened:
        shown = _OPENED.sub("", shown)
    shown += stop
    past = [_past(context, i, cut) for i in replies]
    written = Written(last, len(prompt), _ends(prompt + shown, truth.optional), len(prompt))
    return replace(truth, text=prompt + shown, replies=(*past, written), prompt=len(prompt), loose=True)


def _written_reasoning(message: Mapping[str, Any], prompt: str) -> str:
    """What the target thought behind this prompt. In a content only ``<think>`` tells it: behind a prompt that begins
    reasoning in other words, these are the reply's own."""
    block = OPENING.search(prompt)
    if block is not None and not block[0].startswith("<think>"):
        return str(message.get("reasoning_content") or "").strip()
    return "" if _asks_for_no_reasoning(prompt) else reasoning_of(message)


def _end_of_block(opening: str) -> str:
    return opening.replace("<", "</").replace("[", "[/") if "START" not in opening else "<|END_THINKING|>"


def _asks_for_no_reasoning(prompt: str) -> bool:
    """Whether a server's prompt ends with the end of a block of reasoning."""
    end = prompt.rstrip()
    return any(end.endswith(match[0]) for match in CLOSING.finditer(end[-30:]))


def _only_in_prompts(context: Talk) -> str:
    """What a server's prompt ends with and history does not show."""
    own, *others = context.headers()
    return own[min(map(len, others)) :] if own and others else ""


def _shown_from(talk: Talk, last: int) -> tuple[int, int]:
    try:
        return talk.start_of(last)
    except Unknown:
        message = talk.messages[last]
        if piece := _behind_a_question(talk, message):
            return len(talk.text) - len(piece), len(talk.text) - len(piece)
        if message.get("tool_calls") or reasoning_of(message):
            raise
        return talk.slot(last).start, talk.slot(last).start


def _behind_a_question(talk: Talk, message: Mapping[str, Any]) -> str:
    """What the template shows of a reply behind a plain question, if this conversation ends with it; else ""."""
    question = {"role": "user", "content": STAND_INS[0]}
    asked = Talk(talk.chat, [question], talk.tools, talk.stops, True)
    bare = without_opening(asked.text)
    text = asked.closed([message]).text
    piece = text[len(bare) :] if text.startswith(bare) and asked.asked() else ""
    return piece if piece.strip() and talk.text.endswith(piece) else ""


def _is_complete(opening: str, stops: Stops) -> bool:
    """Whether what only the prompt has is white space or a whole block."""
    text = opening.strip()
    return not text or EMPTY.fullmatch(text) is not None or any(text.endswith(token) for token in stops.special)


def _inline(message: Mapping[str, Any]) -> str:
    """A content that may hold reasoning: a message with a field for it has none there, and beside a call a template
    shows of a content what it likes."""
    reasoning = str(message.get("reasoning_content") or "").strip() or message.get("tool_calls")
    return "" if reasoning else str(message["content"] or "")


def _lost(reasoning: str, content: str, shown: str, opened: bool) -> bool:
    """Whether a template shows a reply without the reasoning that the target wrote: behind a prompt that opens a block
    of it, or in the content."""
    written = opened or "</think>" in content
    if "</think>" in content and "</think>" not in shown:  # what the reply says may have the reasoning's words, too
        shown = shown.replace(content.rpartition("</think>")[2].strip(), "", 1)
    return bool(written and reasoning and "".join(reasoning.split()) not in "".join(shown.split()))


def _is_closed_twice(message: Mapping[str, Any], shown: str) -> bool:
    """Whether a content that ends reasoning which the prompt began stands behind the end of an empty block."""
    block = EMPTY.match(shown)
    content = str(message["content"] or "").strip()
    end = CLOSING.search(content)
    reasoning = str(message.get("reasoning_content") or "").strip()
    return bool(block and end and end.start() and not reasoning and shown.startswith(content, block.end()))


def _past(talk: Talk, index: int, cut: frozenset[int]) -> Written:
    """A reply that stands in the history."""
    _check_shown(talk, index)
    start, earliest = talk.start_of(index)
    closing = talk.closing(index)
    alone = talk.upto(index + 1, opened=False)
    own = alone.closing(index)
    end = talk.end_of(index)
    markup = _markup(own, talk.stops) if talk.messages[index].get("tool_calls") else ""
    if not closing.startswith(markup):
        raise Unknown(f"message {index + 1}: the template writes calls of the past in another way")
    end += len(markup)
    closing = closing[len(markup) :]
    own = own[len(markup) :]
    if index in cut:
        return Written(index, start, (end,), earliest)
    stop = talk.stops.first(closing)
    if stop and (not closing[: stop[0]].strip() or own.startswith(closing[: stop[1]])):
        return Written(index, start, (end + stop[1],), earliest)
    closers = talk.stops.closers(own)
    if closers and closing.startswith(own[:closers]):
        return Written(index, start, (end + closers,), earliest)
    if index + 1 == len(talk.messages):  # what asks for the next of two replies in a row ends none
        closing = closing[: len(closing) - len(talk.stops.shared_end(closing, talk.asks()))]
    if not closers and (index + 1 == len(talk.messages) or talk.messages[index + 1]["role"] == "user"):
        written = _stop_of_history(talk, closing.lstrip())
        space = len(closing) - len(closing.lstrip()) if written else 0
        return Written(index, start, (end + space + len(written),), earliest)
    first = talk.stops.closers(closing, most=1) if closers else 0
    return Written(index, start, tuple({end, end + first}), earliest)


def _markup(own: str, stops: Stops) -> str:
    """What the target writes behind the last argument of its calls, before the token at which it stops."""
    if stop := stops.first(own):
        return own[: stop[0]].rstrip()
    special = [own.rfind(token) for token in stops.special if own.rstrip().endswith(token)]
    return own[: min(special)].rstrip() if special else own.rstrip()


@dataclass(frozen=True)
class _Ending:
    """The end of the last reply: where its text ends, the stop behind it, and one that may follow instead."""

    at: int
    stop: str
    optional: str = ""


def _ending(talk: Talk, last: int) -> _Ending:
    """What the template writes up to the target's stop, else what the target would write."""
    calls = bool(talk.messages[last].get("tool_calls"))
    tail = talk.closing(last)
    markup = _markup(tail, talk.stops) if calls else ""
    end = talk.end_of(last) + len(markup)
    tail = tail[len(markup) :]
    following = _followed(talk, last, calls)[len(markup) :]
    if stop := talk.stops.first(tail):
        each = talk.stops.closers(commonprefix([tail[: stop[1]], following]))
        if each and not tail[each : stop[0]].strip():  # these tokens close each reply, the stop a conversation
            return _Ending(end, tail[:each])
        return _Ending(end, tail[: stop[1]])
    if closers := talk.stops.closers(tail):
        return _Ending(end, tail[:closers])
    if tail.strip():
        raise Unknown("the template ends a conversation with a text that is no token")
    written = _stop_of_history(talk, following.lstrip()) or talk.stops.eos
    return _Ending(end, "", written) if calls else _Ending(end, written)


def _cut_ending(talk: Talk, last: int) -> _Ending:
    """The end of a reply that broke off: that of its text. Of one with calls, which a server has read from it, anything
    up to where it would have stopped."""
    end = talk.end_of(last)
    if not talk.messages[last].get("tool_calls"):
        return _Ending(end, "")
    ending = _ending(talk, last)
    return _Ending(end, "", talk.text[end : ending.at] + ending.stop)


def _stop_of_history(talk: Talk, following: str) -> str:
    """What ends a reply that another turn follows, by ``following``, the text behind it; "" where nothing does.

    Raises Unknown where that may be an end or the beginning of the next turn.
    """
    stop = talk.stops.first(following)
    if stop and stop[0] == 0:
        return following[: stop[1]]
    asked = Talk(talk.chat, [{"role": "user", "content": STAND_INS[0]}], (), talk.stops)
    header = talk.stops.shared_end(following, asked.slot(0).lead)
    closers = talk.stops.closers(following[: len(following) - len(header)])
    if header == following and talk.stops.closers(following, most=1) != talk.stops.closers(following):
        raise Unknown("the template may end replies only where others follow")
    return following[:closers]


def _followed(talk: Talk, last: int, calls: bool) -> str:
    """What history has behind this reply, where a question or a tool's answer follows; "" where that is refused."""
    follow = {"role": "tool", "name": "a", "tool_call_id": "a"} if calls else {"role": "user"}
    try:
        return talk.closed([{**follow, "content": STAND_INS[0]}]).closing(last)
    except (Unknown, ModelError):
        return ""


def _check_shown(talk: Talk, index: int) -> None:
    """Raise Unknown where the template shows another text than the reply's."""
    message = talk.messages[index]
    if message.get("tool_calls"):
        return
    content = "".join((message["content"] or "").split())
    shown = "".join(talk.text[: talk.end_of(index)].split())
    visible = CLOSING.split(content)[-1]
    if not shown.endswith((content, visible)):
        raise Unknown(f"message {index + 1}: the template rewrites the reply")


def _without_block_of(prompt: str, shown: str) -> str:
    """A reply without the empty block of reasoning at its start with which the server's prompt ends, too: a template
    that shows it once, in either's white space, knows but one."""
    block = EMPTY.match(shown)
    tags = "".join(block[0].split()) if block else ""
    is_shared = block and not tags.startswith("</") and "".join(prompt.split()).endswith(tags)
    return shown[len(block[0].rstrip()) :] if block and is_shared else shown


def _without_empty(text: str) -> str:
    return text[match.end() :] if (match := EMPTY.match(text)) else text
