"""Replies by what stands around them, for templates that look into replies: drop reasoning, write tool calls.

Placeholders replace only the other contents, so that the template treats every reply as it is. What lies between two of
them in the real rendering is then the end of one message, the reply's header, the reply, its end and the next header;
header and end are known from renderings in which the reply is nothing but a placeholder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import Any

from eagle3cli.data.chat.format import EMPTY_BLOCK, whole_tags, without_block, without_opening
from eagle3cli.data.chat.headers import (
    check_content,
    header_before_content,
    header_within,
    spaced_prefix,
    template_block_length,
)
from eagle3cli.data.chat.placeholders import (
    REPLY,
    Span,
    align,
    renderings_of,
    unused_placeholders,
)
from eagle3cli.data.chat.probe import MessageSpans, Probe, is_empty
from eagle3cli.data.chat.substitution import Substitution
from eagle3cli.errors import DataError, ModelError


def find_by_surroundings(probe: Probe, text: str) -> MessageSpans:
    """The replies in ``text``, the probe's rendering; raises DataError with the reason where they cannot be told."""
    placeholders = unused_placeholders(text)
    if placeholders is None:
        raise DataError("unsupported-template", "the row holds every character that could mark a place in it")
    problem = "the chat template refuses the conversation"
    context_roles = frozenset({"system", "user", "tool"})
    attempts = (
        Substitution(placeholders),
        Substitution(placeholders, frozenset({"system"})),
        Substitution(placeholders, context_roles),
        Substitution(placeholders, context_roles, around=True),
    )
    for substitution in attempts:
        try:
            surroundings = _match_surroundings(probe, text, substitution)
        except ModelError as error:
            problem = error.message
            continue
        if surroundings is not None:
            return surroundings.message_spans()
        problem = "the chat template changes what stands around the replies, so their places are unknown"
    raise DataError("unsupported-template", problem)


@dataclass(frozen=True)
class _Surroundings:
    """The real text between other contents, and the same with bare replies."""

    probe: Probe
    text: str
    substitution: Substitution
    names: tuple[int, ...]
    spans: list[Span]
    """Spans of the other contents, in the order of the text."""
    bare: tuple[str, ...]
    """The pieces of the bare rendering."""

    def message_spans(self) -> MessageSpans:
        """All replies, and why one cannot be told."""
        replies = [i for i, message in enumerate(self.probe.messages) if message["role"] == "assistant"]
        pieces = {index: self._piece_of(index) for index in replies}
        spans = MessageSpans({}, dict(zip(self.names, self.spans, strict=True)))
        for index in replies:
            run = [i for i in replies if pieces[i] == pieces[index]]
            try:
                spans.replies[index] = self._reply(index, pieces[index], run, spans)
            except DataError as error:
                if not is_empty(self.probe.messages[index]):  # else the template leaves out what says nothing
                    spans.problems[index] = error
        return spans

    def _end_in_run(self, index: int, later: Sequence[int]) -> int:
        """Where a reply ends that others follow at once: before what the template writes between the two, in a
        rendering in which the later ones are bare."""
        following = self.substitution.placeholders.name(later[0], REPLY)
        gap = self._gap(index, later[0])
        bare = self._bare_replies(later)
        try:
            shown, separator, _ = self.probe.render(
                [bare[i] if i in later else message for i, message in enumerate(self.probe.messages)]
            ).partition(following)
        except ModelError:
            separator = ""
        if separator and gap is not None and shown.endswith(gap):
            end = len(shown) - len(gap)
            if self.text.startswith(shown[: self.probe.form.end_at(shown, end)]):
                return end
        raise DataError(
            "two-replies", f"message {index + 1}: two replies in a row, which the chat template may rewrite"
        )

    def _gap(self, before: int, index: int) -> str | None:
        """What the template writes between a bare reply and a bare one right behind it; None where that cannot be
        told."""
        messages = self._bare_replies((before, index))
        try:
            text = self.probe.render(messages)
        except ModelError:
            return None
        name = self.substitution.placeholders.name
        placeholder = name(before, REPLY)
        end: int | None = text.find(placeholder) + len(placeholder)
        if calls := messages[before].get("tool_calls"):
            called = self.substitution.call_placeholder(before, len(calls) - 1)
            end = self.probe.form.first_end(text, text.find(called)) if called in text else None
        elif placeholder not in text:
            return None
        gap, separator, _ = text[end:].partition(name(index, REPLY))
        return gap if separator and end is not None else None

    def _bare_replies(self, speaking: Sequence[int]) -> list[Mapping[str, Any]]:
        """The messages with bare replies, of which these have a text besides their calls."""
        messages = self.substitution.apply(self.probe.messages, bare_replies=True)
        for index in speaking:
            messages[index] = {**messages[index], "content": self.substitution.placeholders.name(index, REPLY)}
        return messages

    def _behind(self, index: int, before: int, reached: int) -> int | None:
        """Where a reply begins that follows another one, ``before``, which ends at ``reached``."""
        form = self.probe.form
        gap = self._gap(before, index)
        ended = form.end_at(self.text, reached)
        start = ended + len(self.text[ended:]) - len(self.text[ended:].lstrip())
        header = next((header for header in form.headers if self.text.startswith(header, start)), None)
        if header is not None and (gap is None or without_opening(header).strip() in gap):
            written = gap.partition(header.strip())[2] if gap is not None else None
            return start + len(header) + self._block_length(index, start + len(header), written)
        if form.header and (
            length := header_before_content(self.text[start:], form.header, self.probe.messages[index])
        ):
            return start + length
        try:
            prompt = self.probe.before(index).render()
        except ModelError:
            return None
        if self.text.startswith(prompt) and len(prompt) >= reached:
            return len(prompt)
        if gap is not None and gap.strip() in ("", *form.ends) and self.text.startswith(gap, reached):
            return reached + len(gap)  # the template writes no header between the two
        return None

    def _block_length(self, index: int, start: int, written: str | None) -> int:
        """Length of the template's own empty block of reasoning at ``start``, behind a header; ``written`` is what it
        has behind that header where the reply is bare."""
        block = EMPTY_BLOCK.match(self.text, start)
        if block is None:
            return 0
        text = block[0]
        if written is not None:
            tags = text.strip()
            if not written.lstrip().startswith(tags):
                return 0
            text = text[: text.index(tags) + len(tags)]
            after = written[written.index(tags) + len(tags) :]
            text += commonprefix([block[0][len(text) :], after])  # other white space is the reply's
        return template_block_length(self.text[start:], text, self.probe.messages[index])

    def _piece_of(self, index: int) -> int:
        """Which piece holds reply ``index``: the one behind the last content before it."""
        before = {i for i in self.names if i < index}
        return max((at + 1 for at, i in enumerate(self.names) if i == max(before)), default=0) if before else 0

    def _reply(self, index: int, number: int, run: Sequence[int], spans: MessageSpans) -> Span:
        """The span of reply ``index`` in piece ``number``, which holds the replies of ``run``; ``spans`` has those
        before it."""
        place = run.index(index)
        start = self.spans[number - 1][1] if number else 0
        lead, placeholder, trail = self.bare[number].partition(self.substitution.placeholders.name(index, REPLY))
        if place + 1 < len(run):
            last = self._end_in_run(index, run[place + 1 :])
        else:
            last = self._end_before_context(index, number, trail if placeholder else None)
        where = f"message {index + 1}"
        before = next((i for i in run[:place][::-1] if i in spans.replies or i in spans.problems), None)
        if before is None:
            behind = self._after_header(index, number, self.text[start:last], lead if placeholder else None)
            first = start + behind if behind is not None else None
        elif before in spans.problems:
            raise DataError("two-replies", f"{where}: two replies in a row, which the chat template may rewrite")
        else:
            first = self._behind(index, before, spans.replies[before][1])
        if first is None or first > last:
            raise DataError("header-differs", f"{where}: the chat template writes another header than a server would")
        message = self.probe.messages[index]
        check_content(self.text[first:last], message, where)
        return first, last

    def _end_before_context(self, index: int, number: int, trail: str | None) -> int:
        """Where a reply ends that another content follows, or nothing; ``trail`` is what stands behind a bare one."""
        message = self.probe.messages[index]
        where = f"message {index + 1}"
        if message.get("tool_calls"):
            trail = self._after_calls(index, self.bare[number], message, where)
        elif trail is None:
            raise DataError("reply-rewritten", f"{where}: the chat template leaves the reply out")
        end = self.spans[number][0] if number < len(self.spans) else len(self.text)
        if not self.text.endswith(trail, self.spans[number - 1][1] if number else 0, end):
            raise DataError(
                "reply-rewritten",
                f"{where}: the chat template rewrites what comes after the reply, so its end is unknown",
            )
        return end - len(trail)

    def _after_calls(self, index: int, bare: str, message: Mapping[str, Any], where: str) -> str:
        """What follows a turn of tool calls, from its end token on."""
        at = bare.find(self.substitution.call_placeholder(index, len(message["tool_calls"]) - 1))
        end = self.probe.form.first_end(bare, at) if at >= 0 else None
        if end is None and index < len(self.probe.messages) - 1:
            end = self._end_of_unended(index, bare, at)
            if end is None:
                raise DataError(
                    "reply-rewritten", f"{where}: the chat template writes no end of turn after the tool call"
                )
        trail = bare[len(bare.rstrip()) :] if end is None else bare[end:]
        for placeholder, name in self.substitution.called(self.probe.messages).items():
            trail = trail.replace(placeholder, name)
        return trail

    def _end_of_unended(self, index: int, bare: str, position: int) -> int | None:
        """Where a call without an end token ends in ``bare``: where the conversation ends that ends with it, but for an
        end token that only stands there."""
        alone = replace(self.probe, messages=self.probe.messages[: index + 1], add_generation_prompt=False)
        try:
            pieces, _ = self.substitution.split(
                alone.render(self.substitution.apply(alone.messages, bare_replies=True))
            )
        except ModelError:
            return None
        ended = pieces.texts[-1].rstrip()
        shared = ended if bare.startswith(ended) else whole_tags(commonprefix([bare, ended])).rstrip()
        is_whole = ended[len(shared) :].strip() in ("", *self.probe.form.ends)
        return len(shared) if is_whole and len(shared) > position >= 0 else None

    def _after_header(self, index: int, number: int, piece: str, lead: str | None) -> int | None:
        """Where the reply begins in ``piece``, which ends with it; ``lead`` is what comes before a bare one."""
        form = self.probe.form
        header = self._server_header(index, number)
        if header is not None and not form.header:  # a template without a generation prompt
            header += form.past_header
        if header is not None and piece.startswith(header):
            block = lead[len(header) :] if lead is not None and lead.startswith(header) else form.block
            return len(header) + template_block_length(piece[len(header) :], block, self.probe.messages[index])
        if lead is not None and piece.startswith(lead):
            return len(lead) if header is None or not form.header else header_within(lead, header, form)
        if header is None or not form.header:
            return None
        opened, past = form.reasoning_edge
        if opened and header.endswith(opened) and piece.startswith(header[: -len(opened)] + past):
            return len(header) - len(opened) + len(past)
        after = header_before_content(piece, header, self.probe.messages[index])
        after = spaced_prefix(piece, header) if after is None else after
        bare = without_block(header)  # history may lack the empty block of a server's prompt
        after = len(bare) if after is None and bare.strip() and piece.startswith(bare) else after
        if after is None and self.probe.messages[index].get("tool_calls"):
            lead = self._lead_with_content(index, number)
            after = header_within(lead, header, form) if lead is not None and piece.startswith(lead) else None
        return after

    def _lead_with_content(self, index: int, number: int) -> str | None:
        """What stands before a call without text, told by the same call with one; None where the template drops it."""
        placeholder = self.substitution.placeholders.name(index, REPLY)
        try:
            pieces, _ = self.substitution.split(self.probe.render(self._bare_replies((index,))))
        except ModelError:
            return None
        lead, separator, _ = pieces.texts[number].partition(placeholder) if number < len(pieces.texts) else ("", "", "")
        return lead if separator else None

    def _server_header(self, index: int, number: int) -> str | None:
        """What a server writes between the last content before the reply and the reply."""
        before = self.probe.before(index)
        try:
            pieces, _ = self.substitution.split(before.render(self.substitution.apply(before.messages)))
        except ModelError:
            return None
        last = pieces.names[-1][0] if pieces.names else None
        return pieces.texts[-1] if last == (self.names[number - 1] if number else None) else None


def _match_surroundings(probe: Probe, text: str, substitution: Substitution) -> _Surroundings | None:
    """The text split at its other contents; None where the template's pieces do not give it."""
    pieces, inside = substitution.split(probe.render(substitution.apply(probe.messages)))
    bare, _ = substitution.split(probe.render(substitution.apply(probe.messages, bare_replies=True)))
    if bare.names != pieces.names:
        return None
    names = tuple(index for index, _ in pieces.names)
    renderings = [
        renderings_of(
            inside[at] if substitution.around else probe.messages[i]["content"], quoted=not substitution.around
        )
        for at, i in enumerate(names)
    ]
    spans = align(text, pieces.texts, renderings)
    return _Surroundings(probe, text, substitution, names, spans, bare.texts) if spans is not None else None
