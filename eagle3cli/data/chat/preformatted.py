"""Replies in text that is already in a chat template's format, found by the delimiters around them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from eagle3cli.data.chat.format import Format
from eagle3cli.data.chat.placeholders import Span
from eagle3cli.data.chat.reply_spans import Rendered


@dataclass(frozen=True)
class ReplyDelimiters:
    """What a person says stands around replies, where no chat template tells. Escapes ``\\n`` and ``\\t`` are read."""

    assistant_header: str
    end_of_turn_token: str | None = None
    user_header: str | None = None

    def as_format(self) -> Format:
        """The same as the format of a template; white space behind the end token is not the target's."""
        header = _unescaped(self.assistant_header)
        end = _unescaped(self.end_of_turn_token or "")
        ends = (end.rstrip() or end,) if end else ()
        return Format(header, header, "", ends[0] if ends else "", _unescaped(self.user_header or ""), ends, ends)


def _unescaped(text: str) -> str:
    return text.replace("\\n", "\n").replace("\\t", "\t")


def find_replies_in_text(text: str, form: Format, *, until_user: bool = False, last_only: bool = False) -> Rendered:
    """The replies of a pre-formatted row: from a header to the next end token, or to the end of the text.

    ``until_user``: a reply also ends, without an end token, where the next user's header begins.
    """
    replies: list[Span] = []
    turns = [(0, "user")] if text else []
    headers = sorted({form.header, form.past_header} - {""}, key=len, reverse=True)
    for match in re.finditer("|".join(map(re.escape, headers)), text) if headers else ():
        if replies and match.start() < replies[-1][1]:
            continue
        start = match.end()
        if form.block and text.startswith(form.block, start):
            start += len(form.block)
        stop = _reply_end(text, start, form, until_user)
        if replies and match.start() == replies[-1][1] and not text.endswith(form.stops, 0, match.start()):
            replies[-1] = (replies[-1][0], stop)  # the target did not stop there, and wrote the header itself
            turns.pop()
        else:
            replies.append((start, stop))
            turns.append((match.start(), "assistant"))
        turns.append((stop, "user"))
    if last_only:
        replies = replies[-1:]
    return Rendered(text, tuple(replies), tuple(turn for turn in turns if turn[0] < len(text)))


def _reply_end(text: str, start: int, form: Format, until_user: bool) -> int:
    end = form.first_end(text, start)
    stop = len(text) if end is None else form.end_at(text, end)
    user = text.find(form.user_header, start) if until_user and form.user_header else -1
    return user if 0 <= user < stop and (end is None or user < end) else stop
