"""Replies by what stands around them, for templates that look into replies: drop reasoning, write tool calls.

Placeholders replace only the other contents, so that the template treats every reply as it is. What lies between two of
them in the real rendering is then the end of one message, the reply's header, the reply, its end and the next header;
header and end are known from renderings in which the reply is nothing but a placeholder.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from os.path import commonprefix
from typing import Any

from eagle3cli.data.chat.format import EMPTY_BLOCK, whole_tags
from eagle3cli.data.chat.headers import check_content, header_within, spaced_prefix, template_block_length
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
        raise DataError("the row holds every character that could mark a place in it")
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
            problem = error.what
            continue
        if surroundings is not None:
            return surroundings.message_spans()
        problem = "the chat template changes what stands around the replies, so their places are unknown"
    raise DataError(problem)


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
        """All replies; raises DataError where one cannot be told."""
        replies = [i for i, message in enumerate(self.probe.messages) if message["role"] == "assistant"]
        pieces = {index: self._piece_of(index) for index in replies}
        spans: dict[int, Span] = {}
        for index in replies:
            run = [i for i in replies if pieces[i] == pieces[index]]
            try:
                if index != run[-1]:
                    spans[index] = self._followed(index)
                else:
                    before = spans.get(run[-2]) if len(run) > 1 else None
                    spans[index] = self._reply(index, pieces[index], before)
            except DataError:
                if not is_empty(self.probe.messages[index]):
                    raise  # else the template leaves out what says nothing
        return MessageSpans(spans, dict(zip(self.names, self.spans, strict=True)))

    def _followed(self, index: int) -> Span:
        """A reply that another follows at once: where it stands in the conversation that ends with it, or, for a
        template that drops reasoning before a question, that goes on with the next one."""
        messages = self.probe.messages
        asked = [message for message in messages[index:] if message["role"] == "user"][:1]
        for more in ([], asked) if asked else ([],):
            alone = replace(self.probe, messages=[*messages[: index + 1], *more], add_generation_prompt=False)
            try:
                text = alone.render()
                spans = find_by_surroundings(alone, text).replies
            except (ModelError, DataError):
                continue
            end = spans[index][1] if index in spans else 0
            goes_on = more and self.text[end:].lstrip().startswith(self.probe.form.headers)
            if end and self.text.startswith(text[: end if goes_on else self.probe.form.end_at(text, end)]):
                return spans[index]
        raise DataError(f"message {index + 1}: two replies in a row, which the chat template may rewrite")

    def _behind(self, index: int, before: Span) -> int | None:
        """Where a reply that follows another at once begins."""
        form = self.probe.form
        ended = form.end_at(self.text, before[1])
        start = ended + len(self.text[ended:]) - len(self.text[ended:].lstrip())
        header = next((header for header in form.headers if self.text.startswith(header, start)), None)
        if header is not None:
            behind = start + len(header)
            block = EMPTY_BLOCK.match(self.text, behind)
            message = self.probe.messages[index]
            return behind + (template_block_length(self.text[behind:], block[0], message) if block else 0)
        try:
            prompt = self.probe.before(index).render()
        except ModelError:
            return None
        return len(prompt) if self.text.startswith(prompt) and len(prompt) >= before[1] else None

    def _piece_of(self, index: int) -> int:
        """Which piece holds reply ``index``: the one behind the last content before it."""
        before = {i for i in self.names if i < index}
        return max((at + 1 for at, i in enumerate(self.names) if i == max(before)), default=0) if before else 0

    def _reply(self, index: int, number: int, before: Span | None = None) -> Span:
        """The span of reply ``index`` in piece ``number``; ``before`` is the reply right before it, if there is one."""
        start = self.spans[number - 1][1] if number else 0
        end = self.spans[number][0] if number < len(self.spans) else len(self.text)
        piece = self.text[start:end]
        bare = self.bare[number]
        message = self.probe.messages[index]
        where = f"message {index + 1}"
        lead, placeholder, trail = bare.partition(self.substitution.placeholders.name(index, REPLY))
        if message.get("tool_calls"):
            trail = self._after_calls(index, bare, message, where)
        elif not placeholder:
            raise DataError(f"{where}: the chat template leaves the reply out")
        if not piece.endswith(trail):
            raise DataError(f"{where}: the chat template rewrites what comes after the reply, so its end is unknown")
        last = len(piece) - len(trail)
        if before is None:
            first = self._after_header(index, number, piece[:last], lead if placeholder else None)
        else:
            behind = self._behind(index, before)
            first = behind - start if behind is not None else None
        if first is None or first > last:
            raise DataError(f"{where}: the chat template writes another header than a server would")
        check_content(piece[first:last], message, where)
        return start + first, start + last

    def _after_calls(self, index: int, bare: str, message: Mapping[str, Any], where: str) -> str:
        """What follows a turn of tool calls, from its end token on."""
        calls = message["tool_calls"]
        names = {self.substitution.call_placeholder(index, i): call["function"]["name"] for i, call in enumerate(calls)}
        last = list(names)[-1]
        at = bare.find(last)
        end = self.probe.form.first_end(bare, at) if at >= 0 else None
        if end is None and index < len(self.probe.messages) - 1:
            end = self._end_of_unended(index, bare, at)
            if end is None:
                raise DataError(f"{where}: the chat template writes no end of turn after the tool call")
        trail = bare[len(bare.rstrip()) :] if end is None else bare[end:]
        for placeholder, name in names.items():
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
        after = spaced_prefix(piece, header)
        if after is None and self.probe.messages[index].get("tool_calls"):
            lead = self._lead_with_content(index, number)
            after = header_within(lead, header, form) if lead is not None and piece.startswith(lead) else None
        return after

    def _lead_with_content(self, index: int, number: int) -> str | None:
        """What stands before a call without text, told by the same call with one; None where the template drops it."""
        messages = self.substitution.apply(self.probe.messages, bare_replies=True)
        placeholder = self.substitution.placeholders.name(index, REPLY)
        messages[index] = {**messages[index], "content": placeholder}
        try:
            pieces, _ = self.substitution.split(self.probe.render(messages))
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
