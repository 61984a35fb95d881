"""Shown of tokens for the eye: green is trained, red is not, underlined is unknown to the draft.

Without colour the same is said with marks: ``{+trained+}`` and ``{?unknown to the draft?}``. Below each row stand the
two edges of every reply, where a mask is wrong if it is wrong.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from eagle3cli.data.inspect.show import Piece, RowView, View


GREEN = "\x1b[32m"
RED = "\x1b[31m"
DIM = "\x1b[2m"
UNDERLINE = "\x1b[4m"
NO_UNDERLINE = "\x1b[24m"
RESET = "\x1b[0m"
FEWEST_COUNTED = 8
"""Equal tokens one behind the other that are shown as one, in a row with images."""
WHITE_SPACE = {" ": "·", "\t": "→", "\n": "↵\n"}
STEERING = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
"""Characters that turn the direction of writing, so that text would be read in another order than it is in."""


@dataclass(frozen=True)
class Style:
    """How rows are shown."""

    colour: bool = False
    ids: bool = False
    """Each token's id behind it."""
    whitespace: bool = False
    """Blanks, tabs and line ends as signs, invisible characters by number."""

    def text(self, piece: Piece) -> str:
        """A piece as it is shown."""
        shown = visible(piece.text, whitespace=self.whitespace)
        if not self.ids:
            return shown
        line = shown.rstrip("\n")
        return f"{line}<{' '.join(map(str, piece.ids))}>{shown[len(line) :]}"


def visible(text: str, *, whitespace: bool = False) -> str:
    """Text that cannot move the cursor, change colours or turn the direction of writing.

    >>> visible("a\\tb\\x1b[2J", whitespace=True)
    'a→b\\\\x1b[2J'
    """
    return "".join(_visible(c, whitespace) for c in text)


def _visible(character: str, whitespace: bool) -> str:
    if whitespace and character in WHITE_SPACE:
        return WHITE_SPACE[character]
    if character in " \n\t":
        return character
    code = ord(character)
    kind = unicodedata.category(character)
    hidden = kind == "Cc" or character in STEERING or (whitespace and kind in ("Cf", "Zs", "Zl", "Zp"))
    return (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}") if hidden else character


def title(row: RowView) -> str:
    """One line about a row."""
    parts = [f"id {visible(row.id)}"] if row.id else []
    parts += [f"line {row.line}"] if row.line else []
    name = f"row {row.number}" + (f" ({', '.join(parts)})" if parts else "")
    if row.rejected is not None:
        return f"{name}: rejected: {visible(row.rejected)}"
    count = len(row.replies)
    counts = [f"{row.tokens:,} tokens", f"{row.trained:,} trained in {count} {'reply' if count == 1 else 'replies'}"]
    counts += [f"{row.missing:,} of them unknown to the draft"] if row.missing else []
    counts += ["cut at the maximum length"] if row.truncated else []
    counts += [f"{_own(row.on_policy)}"] if row.on_policy else []
    return f"{name}: {', '.join(counts)}" + ("" if row.trained else "; it trains nothing")


def image_lines(row: RowView) -> list[str]:
    """Where a row's images are, one line each."""
    return [f"image {number}: {visible(source)}" for number, source in enumerate(row.images, 1)]


def _counted(row: RowView) -> Iterator[Piece]:
    """The row's pieces; of one with images, what stands for them is told once, with its number."""
    for _, group in groupby(row.pieces, key=lambda piece: (piece.ids, piece.role, piece.trained)):
        run = list(group)
        if len(run) < FEWEST_COUNTED or not row.images:
            yield from run
        else:
            yield replace(run[0], text=f"{run[0].text}×{len(run)}")


def _own(on_policy: dict[str, Any]) -> str:
    """How far the replies of a row are the target's own."""
    logprob = on_policy["logprob"]
    text = f"{on_policy['share']:.0%} the target's best"
    return text if logprob is None else f"{text} (mean log-probability {logprob:.2f})"


def page(shown: View, style: Style) -> str:
    """All rows as text for a terminal or a plain stream."""
    unknown = shown.draft_vocab is not None
    if style.colour:
        key = f"{GREEN}trained{RESET}  {RED}not trained{RESET}"
        key += f"  {UNDERLINE}unknown to the draft{RESET}" if unknown else ""
    else:
        key = "{+trained+}  not trained" + ("  {?unknown to the draft?}" if unknown else "")
    parts = [visible(shown.source), key]
    for row in shown.rows:
        parts += ["", title(row), *image_lines(row), *_body(row, style), *edges(row)]
    return "\n".join(parts)


def _body(row: RowView, style: Style) -> Iterator[str]:
    for role, pieces in groupby(_counted(row), key=lambda piece: piece.role):
        if role:
            yield f"{DIM}[{role}]{RESET}" if style.colour else f"[{role}]"
        run = groupby(pieces, key=lambda piece: piece.trained)
        yield "".join(_run([*inside], style, trained=trained) for trained, inside in run)


def _run(pieces: Sequence[Piece], style: Style, *, trained: bool) -> str:
    if not style.colour:
        text = "".join(style.text(piece) if piece.known else "{?" + style.text(piece) + "?}" for piece in pieces)
        return "{+" + text + "+}" if trained else text
    text = "".join(
        style.text(piece) if piece.known else f"{UNDERLINE}{style.text(piece)}{NO_UNDERLINE}" for piece in pieces
    )
    colour = GREEN if trained else RED
    # Line by line, as pagers forget the colour at the end of a line.
    return "\n".join(f"{colour}{line}{RESET}" if line else "" for line in text.split("\n"))


def edges(row: RowView) -> Iterator[str]:
    """A line for each reply: its tokens (from 0), what stands before it, its first and its last piece."""
    for number, reply in enumerate(row.replies, 1):
        ends = "" if reply.ended else ", no end token"
        yield (
            f"reply {number}: tokens {reply.first} to {reply.last - 1}, behind {reply.behind!r} "
            f"from {reply.begins!r} to {reply.ends!r}{ends}"
        )


def as_data(shown: View) -> list[dict[str, Any]]:
    """The rows for --json: the ids and the loss mask of all tokens, runs of equal role and training, and the edges of
    the replies."""
    return [_row_data(row) for row in shown.rows]


def _row_data(row: RowView) -> dict[str, Any]:
    data: dict[str, Any] = {"row": row.number, "id": row.id, "line": row.line}
    if row.rejected is not None:
        return {**data, "rejected": row.rejected}
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
    names = ("first", "last", "behind", "begins", "ends", "ended")
    replies = [{name: getattr(reply, name) for name in names} for reply in row.replies]
    counts = {"tokens": row.tokens, "trained": row.trained, "truncated": row.truncated, "missing": row.missing}
    flat = {
        "token_ids": [i for piece in row.pieces for i in piece.ids],
        "loss_mask": [int(piece.trained) for piece in row.pieces for _ in piece.ids],
    }
    own: dict[str, Any] = {"on_policy": row.on_policy} if row.on_policy else {}
    own |= {"images": list(row.images)} if row.images else {}
    return {**data, **counts, **flat, **own, "replies": replies, "runs": runs}


PAGE_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
  overflow-wrap: anywhere; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; border: 1px solid #8884; border-radius: 6px; padding: .8rem; }
.t { color: #177d2f; background: #22c55e22; } .n { color: #b3261e; }
.m { text-decoration: underline wavy; } .r { color: #777; font-weight: 600; }
.e { font: 13px ui-monospace, monospace; color: #777; margin: .2rem 0; }
@media (prefers-color-scheme: dark) { .t { color: #5fd784; } .n { color: #ff8a80; } }
"""


PAGE_START = "<!doctype html><!-- eagle3 view -->"
"""How a page begins, so that a later run knows it for its own."""


def html(shown: View, style: Style) -> str:
    """All rows as one page that needs nothing else; every text is escaped."""
    parts = [
        f"{PAGE_START}<html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>",
        f"<title>{escape(shown.source)}</title><style>{PAGE_STYLE}</style><h1>What is trained</h1>",
        f"<p>{escape(shown.source)}</p><p><span class='t'>trained</span> <span class='n'>not trained</span> ",
        "" if shown.draft_vocab is None else "<span class='m'>unknown to the draft</span> ",
        "(rest the pointer on a token for its id)</p>",
    ]
    for row in shown.rows:
        parts.append(f"<h2>{escape(title(row))}</h2>")
        parts += [f"<p class='e'>{escape(line)}</p>" for line in image_lines(row)]
        parts.append(f"<pre>{''.join(_html_body(row, style))}</pre>" if row.pieces else "")
        parts += [f"<p class='e'>{escape(line)}</p>" for line in edges(row)]
    return "".join(parts) + "</html>\n"


def _html_body(row: RowView, style: Style) -> Iterator[str]:
    for role, pieces in groupby(_counted(row), key=lambda piece: piece.role):
        yield f"<span class='r'>[{escape(role)}]</span>\n" if role else ""
        for piece in pieces:
            classes = ("t" if piece.trained else "n") + ("" if piece.known else " m")
            numbers = " ".join(map(str, piece.ids))
            yield f"<span class='{classes}' title='{numbers}'>{escape(style.text(piece))}</span>"
        yield "\n"
