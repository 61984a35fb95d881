"""Where a reply begins behind a template's header, told by texts alone, and whether it says what the message says."""

from __future__ import annotations

from collections.abc import Mapping
from os.path import commonprefix
from typing import Any

from eagle3cli.data.chat.format import EMPTY_BLOCK, OPEN_BLOCK, Format, whole_tags
from eagle3cli.errors import DataError


def header_within(lead: str, header: str, form: Format) -> int:
    """Where the target begins to write in ``lead``, what the template has before a reply, where a server has ``header``
    and the two part: a marker that the server does not write is the target's; white space is not, nor is
    one that it writes, too."""
    shared = whole_tags(commonprefix([lead, header]))
    after = form.written_from(lead, shared) if shared.strip() else len(lead)
    written = lead[after:].strip()
    return after if written and written not in header else len(lead)


def spaced_prefix(text: str, prefix: str) -> int | None:
    """The length of ``prefix`` at the start of ``text``, where the two differ in white space only."""
    at = 0
    for character in prefix.rstrip():
        while not character.isspace() and at < len(text) and text[at].isspace():
            at += 1
        if character.isspace():
            continue
        if at == len(text) or text[at] != character:
            return None
        at += 1
    space = prefix[len(prefix.rstrip()) :]
    return at + len(commonprefix([text[at:], space]))


def header_before_content(piece: str, header: str, message: Mapping[str, Any]) -> int | None:
    """Where a content begins that opens or closes reasoning itself and that the template therefore writes as it is,
    without the block that ``header``, a server's, opens; None where that is not so."""
    block = OPEN_BLOCK.search(header)
    bare = header[: block.start()] if block else header
    content = _without_space(message["content"] or "")
    shown = bare.strip() and piece.startswith(bare) and _without_space(piece[len(bare) :]).startswith(content)
    return len(bare) if block and content and shown else None


def template_block_length(reply: str, block: str, message: Mapping[str, Any]) -> int:
    """Length of the template's own empty block of reasoning at the start of a reply; 0 where the target wrote it."""
    if not EMPTY_BLOCK.fullmatch(block):
        return 0
    content = (message["content"] or "").strip()
    if EMPTY_BLOCK.match(content) and not (
        reply.startswith(block) and reply[len(block) :].lstrip().startswith(content)
    ):
        return 0
    if reply.startswith(block):
        return len(block)
    return len(reply) if reply.strip() == block.strip() else 0


def check_content(reply: str, message: Mapping[str, Any], where: str) -> None:
    """Raise DataError where the template wrote something else than the message says."""
    if message.get("tool_calls"):
        return
    content = _without_space(message["content"])
    rendered = _without_space(reply)
    visible = content.rpartition("</think>")[2] if "</think>" in content else content
    if not rendered.endswith((content, visible)):
        raise DataError(
            "reply-rewritten",
            f"{where}: the chat template {'rewrites the reply' if rendered else 'leaves the reply out'}",
        )


def _without_space(text: str) -> str:
    """The text without white space, which templates collapse."""
    return "".join(text.split())
