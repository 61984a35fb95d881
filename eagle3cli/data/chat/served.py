"""A conversation's row as a server would show it at the last turn, and the places of its messages.

That is the template's whole rendering where it goes on from the server's prompt, else the prompt and the reply.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from os.path import commonprefix
from typing import Any

from eagle3cli.data.chat.format import EMPTY_BLOCK, OPEN_BLOCK, Format, closing_tag, without_opening
from eagle3cli.data.chat.headers import template_block_length
from eagle3cli.data.chat.placeholders import Span
from eagle3cli.data.chat.probe import MessageSpans, Probe
from eagle3cli.data.chat.skeletons import continues_prompt, find_by_placeholders
from eagle3cli.data.chat.surroundings import find_by_surroundings
from eagle3cli.errors import DataError

_NEWLINE = "\n"


def served_rendering(probe: Probe) -> tuple[str, MessageSpans]:
    """The row's text as a server would show it, and the spans in it."""
    whole = probe.render()
    in_blocks = probe.chat.has_generation_blocks(probe.tools)
    spans = _find_by_generation_blocks(probe, whole) if in_blocks else find_by_placeholders(probe, whole)
    last = len(probe.messages) - 1
    aligned = spans is not None and not in_blocks  # so the template writes this reply as it writes a placeholder
    if probe.messages[last]["role"] != "assistant" or (aligned and continues_prompt(probe)):
        return whole, (spans or find_by_surroundings(probe, whole)).checked()
    before = probe.before(last)
    prompt = before.render()
    spans = spans or find_by_surroundings(probe, whole)
    if last in spans.problems:
        raise spans.problems[last]
    if last not in spans.replies:
        if in_blocks:
            return whole, spans.checked()
        content = probe.messages[last]["content"]  # it says nothing, and the template leaves it out
        if OPEN_BLOCK.search(prompt):
            raise DataError("empty-reply", f"message {last + 1}: an empty reply behind a prompt that begins reasoning")
        spans = _find_spans(before, prompt).checked()
        spans.replies[last] = (len(prompt), len(prompt) + len(content))
        return prompt + content + probe.form.closing, spans
    start, end = spans.replies[last]
    closing = whole[end : spans.end_of(last, whole, probe.form)]
    continues = whole.startswith(prompt)
    start = _start_behind(prompt, whole, start, probe.form) if continues else start
    reply = _with_lost_reasoning(prompt, probe.messages[last], whole[:end]) if continues else None
    if not continues and not OPEN_BLOCK.search(prompt):
        earlier = [span for i, span in (*spans.replies.items(), *spans.others.items()) if i != last]
        start = _opening_before(whole, start, earlier)
    wrote_block = continues and start > len(prompt)  # the template, and an empty one of reasoning
    if reply is None and not wrote_block:
        reply = _generated_reply(prompt, probe.messages[last], whole[start:end], continues)
    if reply is None:
        ends = [end for _, end in (*spans.replies.values(), *spans.others.values()) if end <= start]
        header = without_opening(probe.form.header).strip()
        if not whole.startswith(without_opening(prompt)) and header not in whole[max(ends, default=0) : start]:
            raise DataError(
                "header-differs", f"message {last + 1}: the chat template writes another header than a server would"
            )
        spans.replies[last] = (start, end)
        return whole, spans.checked()
    if probe.messages[last - 1]["role"] == "assistant" and not prompt.rstrip().endswith(probe.form.header.strip()):
        raise DataError("two-replies", f"message {last + 1}: a server's prompt asks for no second reply in a row")
    known = {*spans.replies, *spans.problems}  # of the others the template's blocks say that nobody trains them
    spans = _find_spans(before, prompt).checked()
    spans = MessageSpans({i: span for i, span in spans.replies.items() if i in known}, spans.others)
    spans.replies[last] = (len(prompt), len(prompt) + len(reply))
    return prompt + reply + closing, spans


def _with_lost_reasoning(prompt: str, message: Mapping[str, Any], whole: str) -> str | None:
    """The reply behind a prompt that begins a block of reasoning, where ``whole``, the rendering up to the reply's end,
    shows that block with nothing in it although the message has reasoning; else None."""
    block = OPEN_BLOCK.search(prompt)
    rendered = whole[len(prompt) :]
    if block is None or not rendered.lstrip().startswith(closing_tag(block)):
        return None
    reasoning = str(message.get("reasoning_content") or "")
    if reasoning.strip():
        return reasoning.strip(_NEWLINE) + rendered
    content = str(message["content"] or "").lstrip().removeprefix(block[1])
    thought, closed, _ = content.partition(closing_tag(block))
    if not closed or not thought.rpartition(block[1])[2].strip():
        return None
    empty = EMPTY_BLOCK.match(rendered)
    shown = rendered[empty.end() :] if empty else ""
    if shown.startswith(str(message["content"]).strip()):  # behind a block of the template's
        return _without_shared_space(shown.removeprefix(block[1]), block[3]) if shown.startswith(block[1]) else shown
    return thought.strip() + rendered if message.get("tool_calls") else content


def _start_behind(prompt: str, whole: str, start: int, form: Format) -> int:
    """Where the target begins to write in ``whole``, which goes on from the prompt."""
    if not form.header or start <= len(prompt):
        return max(start, len(prompt))
    return form.written_from(whole[:start], prompt)


def _opening_before(whole: str, start: int, earlier: Sequence[Span]) -> int:
    """Where a reply begins whose reasoning the template opens before its generation block, which no server's prompt
    does; ``start`` where it opens none. With what one of the ``earlier`` messages ends it does not begin."""
    opening = OPEN_BLOCK.search(whole[:start])
    own = opening is not None and not any(opening.start() < end <= start for _, end in earlier)
    return opening.start() if opening is not None and own else start


def _find_spans(probe: Probe, text: str) -> MessageSpans:
    return find_by_placeholders(probe, text) or find_by_surroundings(probe, text)


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
    own = content.count(closing) if reasoning.strip() else 0  # within what follows the reasoning
    closes = rendered.count(closing) > _arguments(message).count(closing) + own
    if not continues and closes and rendered.lstrip().startswith(opening):
        return _without_shared_space(rendered.lstrip()[len(opening) :], space)
    if reasoning.strip() and not closes:
        return f"{reasoning.strip(_NEWLINE)}\n{closing}\n\n{rendered.lstrip(_NEWLINE)}"
    if content.lstrip().startswith(opening) and rendered.strip().startswith(content.strip()):
        # The prompt has written the opening already.
        return rendered.lstrip()[len(opening) :].removeprefix(space)
    if continues or message.get("tool_calls") and not closes:
        return None
    thought, closed, _ = content.partition(closing)
    thinks = reasoning.strip() or (closed and not thought.strip()) or thought.rpartition(opening)[2].strip()
    if closes and thinks:
        return rendered
    if content.lstrip().startswith(opening):
        return content.lstrip()[len(opening) :].removeprefix(space)
    return content if closed and thinks else None


def _arguments(message: Mapping[str, Any]) -> str:
    """All arguments of a message's calls."""
    calls = message.get("tool_calls") or ()
    return json.dumps([call["function"]["arguments"] for call in calls], ensure_ascii=False)


def _without_shared_space(text: str, space: str) -> str:
    """The text without the white space at its start that stands in ``space`` already."""
    return text[len(commonprefix([text, space])) :]


def _find_by_generation_blocks(probe: Probe, whole: str) -> MessageSpans:
    """Replies of a template with ``{% generation %}`` blocks: what lies outside them is none, and where nothing else
    tells the spans, the blocks do."""
    blocks = probe.chat.generation_spans(probe.messages, probe.tools)
    replies = [i for i, message in enumerate(probe.messages) if message["role"] == "assistant"]
    try:
        spans = _find_spans(probe, whole)
    except DataError as error:
        spans = MessageSpans({}, {}, dict.fromkeys(replies, error))
    if len(blocks) == len(replies):
        for index, block in zip(replies, blocks, strict=True):
            if spans.problems.pop(index, None) is not None:
                spans.replies[index] = _bare_reply(probe, whole, block, index)
    inside = {i: span for i, span in spans.replies.items() if any(a <= span[1] and span[0] < b for a, b in blocks)}
    return MessageSpans(inside, spans.others, spans.problems)


def _bare_reply(probe: Probe, text: str, span: Span, index: int) -> Span:
    """A span without the header before reply ``index``, an empty block of the template's, and the end token."""
    form = probe.form
    start, end = span
    header = next((h for h in (form.header, form.past_header) if h and text.startswith(h, start)), "")
    start += len(header)
    if block := EMPTY_BLOCK.match(text, start):
        start += template_block_length(text[start:end], block[0], probe.messages[index])
    while end > start and text[end - 1].isspace():
        end -= 1
    closing = next((token for token in form.ends if text.endswith(token, start, end)), "")
    return (start, end - len(closing)) if closing else (start, max(start, span[1]))
