"""Rows of tokens for the eye: green is trained, red is not, underlined is missing from the draft's vocabulary.

Without colour the same is said with marks: ``{+trained+}`` and ``{?missing?}``.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import Any, Protocol


class Piece(Protocol):
    """Neighbouring tokens that make whole characters."""

    @property
    def ids(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def text(self) -> str: ...  # noqa: D102
    @property
    def trained(self) -> bool: ...  # noqa: D102
    @property
    def known(self) -> bool: ...  # noqa: D102
    @property
    def role(self) -> str: ...  # noqa: D102


class Row(Protocol):
    """A row in pieces."""

    @property
    def number(self) -> int: ...  # noqa: D102
    @property
    def id(self) -> str: ...  # noqa: D102
    @property
    def line(self) -> int: ...  # noqa: D102
    @property
    def tokens(self) -> int: ...  # noqa: D102
    @property
    def trained(self) -> int: ...  # noqa: D102
    @property
    def missing(self) -> int: ...  # noqa: D102
    @property
    def pieces(self) -> Sequence[Piece]: ...  # noqa: D102


class Rows(Protocol):
    """Rows and where they come from."""

    @property
    def source(self) -> str: ...  # noqa: D102
    @property
    def draft_vocab(self) -> int | None: ...  # noqa: D102
    @property
    def rows(self) -> Sequence[Row]: ...  # noqa: D102


GREEN, RED, DIM, UNDERLINE, RESET = "\x1b[32m", "\x1b[31m", "\x1b[2m", "\x1b[4m", "\x1b[0m"


def title(row: Row) -> str:
    """One line about a row."""
    place = ", ".join(
        part for part in (f"id {row.id}" if row.id else "", f"line {row.line}" if row.line else "") if part
    )
    missing = f", {row.missing} trained tokens missing from the draft's vocabulary" if row.missing else ""
    return (
        f"row {row.number}"
        + (f" ({place})" if place else "")
        + f": {row.tokens} tokens, {row.trained} trained{missing}"
    )


def page(shown: Rows, *, colour: bool, ids: bool = False) -> str:
    """All rows as text for a terminal or a plain stream."""
    key = (
        f"{GREEN}trained{RESET}  {RED}not trained{RESET}  {UNDERLINE}missing from the draft's vocabulary{RESET}"
        if colour
        else "{+trained+}  not trained" + ("  {?missing from the draft's vocabulary?}" if shown.draft_vocab else "")
    )
    parts = [shown.source, key]
    for row in shown.rows:
        parts += ["", title(row), _body(row, colour=colour, ids=ids)]
    return "\n".join(parts)


def _body(row: Row, *, colour: bool, ids: bool) -> str:
    lines = []
    for role, pieces in groupby(row.pieces, key=lambda piece: piece.role):
        if role:
            lines.append(f"{DIM}[{role}]{RESET}" if colour else f"[{role}]")
        runs = []
        for trained, run in groupby(pieces, key=lambda piece: piece.trained):
            text = "".join(_piece(piece, colour=colour, ids=ids) for piece in run)
            if colour:
                runs.append(f"{GREEN if trained else RED}{text}{RESET}")
            else:
                runs.append("{+" + text + "+}" if trained else text)
        lines.append("".join(runs))
    return "\n".join(lines)


def _piece(piece: Piece, *, colour: bool, ids: bool) -> str:
    text = visible(piece.text) + (f"<{' '.join(map(str, piece.ids))}>" if ids else "")
    if piece.known:
        return text
    return f"{UNDERLINE}{text}\x1b[24m" if colour else "{?" + text + "?}"


def visible(text: str) -> str:
    """Text whose control characters cannot move the cursor or change colours."""
    return "".join(c if c in "\n\t" or (ord(c) >= 32 and not 127 <= ord(c) < 160) else f"\\x{ord(c):02x}" for c in text)


def as_data(shown: Rows) -> list[dict[str, Any]]:
    """The rows for --json: runs of equal role and training, with their token ids."""
    told = []
    for row in shown.rows:
        runs = []
        for (role, trained), pieces in groupby(row.pieces, key=lambda piece: (piece.role, piece.trained)):
            group = list(pieces)
            runs.append(
                {
                    "role": role,
                    "trained": trained,
                    "text": "".join(piece.text for piece in group),
                    "token_ids": [i for piece in group for i in piece.ids],
                    "missing": [i for piece in group if not piece.known for i in piece.ids],
                }
            )
        told.append(
            {
                "row": row.number,
                "id": row.id,
                "line": row.line,
                "tokens": row.tokens,
                "trained": row.trained,
                "runs": runs,
            }
        )
    return told


STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #8884; border-radius: 6px; padding: .8rem; }
.t { color: #177d2f; background: #22c55e22; } .n { color: #b3261e; }
.m { text-decoration: underline wavy; } .r { color: #777; font-weight: 600; }
@media (prefers-color-scheme: dark) { .t { color: #5fd784; } .n { color: #ff8a80; } }
"""


PAGE_START = "<!doctype html><!-- eagle3 view -->"
"""How a page begins, so that a later run knows it for its own."""


def html(shown: Rows, *, ids: bool = False) -> str:
    """All rows as one page that needs nothing else; every text is escaped."""
    parts = [
        f"{PAGE_START}<html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>",
        f"<title>{escape(shown.source)}</title><style>{STYLE}</style><h1>What is trained</h1>",
        f"<p>{escape(shown.source)}</p><p><span class='t'>trained</span> <span class='n'>not trained</span> "
        "<span class='m'>missing from the draft's vocabulary</span>; rest the pointer on a token for its id.</p>",
    ]
    for row in shown.rows:
        parts.append(f"<h2>{escape(title(row))}</h2><pre>")
        for role, pieces in groupby(row.pieces, key=lambda piece: piece.role):
            parts.append(f"<span class='r'>[{escape(role)}]</span>\n" if role else "")
            for piece in pieces:
                names = ("t" if piece.trained else "n") + ("" if piece.known else " m")
                numbers = " ".join(map(str, piece.ids))
                text = visible(piece.text) + (f"<{numbers}>" if ids else "")
                parts.append(f"<span class='{names}' title='{numbers}'>{escape(text)}</span>")
            parts.append("\n")
        parts.append("</pre>")
    return "".join(parts) + "</html>\n"
