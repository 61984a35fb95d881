"""Token rows against the oracle of `eagle3cli.data.chat.oracle`: is each token where it must be, trained as it must be?

The oracle knows characters, rows are tokens: a server's prompt is tokenized as a whole, and what the target wrote
behind it apart or with it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from eagle3cli.data.chat.oracle import Truth, Written
from eagle3cli.data.tokens.rows import TokenRow

_AROUND = 60
"""Tokens shown before and behind the place where row and oracle part."""
_WHOLE = 200
"""Rows of up to so many tokens are shown whole."""

Offsets = list[tuple[int, int]]
"""First character of each token, and the one behind it."""


@dataclass(frozen=True)
class Disagreement:
    """Where a row is not what the oracle says: ``token`` is the first one that differs."""

    token: int
    what: str


def compare(tokenizer: Any, row: TokenRow, truth: Truth, *, last_only: bool = False) -> Disagreement | None:
    """The first difference between a row and the truth; None where they agree. ``last_only``: one reply is trained."""
    truth = replace(truth, replies=truth.replies[-1:]) if last_only else truth
    wrong = _compare(tokenizer, row, truth)
    start = truth.replies[-1].start if truth.replies else 0
    if wrong is not None and not truth.loose and truth.prompt < start <= len(truth.text):
        # An empty block before the reply may be of a prompt that asks for no reasoning, which is tokenized as a whole.
        return wrong if _compare(tokenizer, row, replace(truth, prompt=start)) is not None else None
    return wrong


def _compare(tokenizer: Any, row: TokenRow, truth: Truth) -> Disagreement | None:
    ids = row.token_ids.tolist()
    context = _tokens(tokenizer, truth.text[: truth.prompt])
    known = min(len(context.ids), len(ids))
    differing = next((at for at in range(known) if ids[at] != context.ids[at]), None)
    if differing is not None:
        return Disagreement(differing, "the context is not what a server shows")
    if row.truncated and known == len(ids):
        return _compare_masks(row, truth, context.offsets)
    if truth.loose:
        return _compare_loose(tokenizer, row, truth, context)
    offsets = _offsets(tokenizer, row, truth, context)
    if offsets is None:
        return Disagreement(known, "the last reply is not what the target wrote behind the server's prompt")
    return _compare_masks(row, truth, offsets)


def shown(tokenizer: Any, row: TokenRow, around: int) -> str:
    """The row as text, what is trained between « and »; of a long one what stands around token ``around``."""
    first, last = (0, len(row)) if len(row) <= _WHOLE else (max(0, around - _AROUND), min(len(row), around + _AROUND))
    text = "..." if first else ""
    start = first
    for at in range(first + 1, last + 1):
        if at == last or row.loss_mask[at] != row.loss_mask[start]:
            part = tokenizer.decode(row.token_ids[start:at].tolist())
            text += f"«{part}»" if row.loss_mask[start] else part
            start = at
    return text + ("..." if last < len(row) else "")


def _offsets(tokenizer: Any, row: TokenRow, truth: Truth, context: Any) -> Offsets | None:
    """Where each token of the row stands, if they are those of the prompt and the reply; else None."""
    known = len(context.ids)
    behind = row.token_ids[known:].tolist()
    reply = truth.text[truth.prompt :]
    rests = dict.fromkeys(
        stop + rest for stop in ("", truth.optional) for rest in (truth.rest, "", truth.rest.rstrip())
    )
    for rest, apart in product(rests, (False, True)):
        ids: list[int] = []
        offsets: Offsets = list(context.offsets)
        at = truth.prompt
        for part in (reply, rest) if apart else (reply + rest,):
            encoding = _tokens(tokenizer, part)
            ids += encoding.ids
            offsets += [(start + at, end + at) for start, end in encoding.offsets]
            at += len(part)
        if behind == (ids[: len(behind)] if row.truncated else ids):
            return offsets
    return None


def _compare_loose(tokenizer: Any, row: TokenRow, truth: Truth, context: Any) -> Disagreement | None:
    """The same where the template does not show the last reply as it was written: white space may differ."""
    known = len(context.ids)
    trained = int(row.loss_mask[known:].sum())
    if not row.loss_mask[known : known + trained].all():
        return Disagreement(known, "the last reply is not trained from its start on")
    said = _without_space(tokenizer.decode(row.token_ids[known : known + trained].tolist()))
    expected = _without_space(truth.text[truth.prompt :])
    most = expected + _without_space(truth.optional)
    if not most.startswith(said) or not (row.truncated or said.startswith(expected)):
        return Disagreement(known, "the last reply is not what the target wrote behind the server's prompt")
    past = tuple(reply for reply in truth.replies if reply.start < truth.prompt)
    return _compare_masks(row, replace(truth, replies=past), context.offsets)


def _compare_masks(row: TokenRow, truth: Truth, offsets: Offsets) -> Disagreement | None:
    """The first token whose mask is wrong, as far as ``offsets`` go."""
    for at, (trained, (start, end)) in enumerate(zip(row.loss_mask.tolist(), offsets, strict=False)):
        must, may = _trained(truth, start, end)
        if trained and not may:
            return Disagreement(at, "trained, but the target did not write it")
        if must and not trained:
            return Disagreement(at, "not trained, though the target wrote it")
    return None


def _trained(truth: Truth, start: int, end: int) -> tuple[bool, bool]:
    """Whether a token of these characters must be trained, and whether it may."""
    reply = next((reply for reply in truth.replies if reply.earliest < end and start < max(reply.ends)), None)
    if reply is None or start == end:
        return False, start == end
    if start < reply.earliest:  # header and reply in one token, which the target did not write
        return False, False
    if end > max(reply.ends):  # an end token may swallow the white space behind it
        return False, not truth.text[max(reply.ends) : end].strip()
    return _inside(reply, start, end), True


def _inside(reply: Written, start: int, end: int) -> bool:
    return reply.start <= start and end <= min(reply.ends)


def _tokens(tokenizer: Any, text: str) -> Any:
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)


def _without_space(text: str) -> str:
    """The text without white space; SentencePiece writes a space as a letter, and reads that letter as a space."""
    return "".join(text.replace("\u2581", " ").split())
