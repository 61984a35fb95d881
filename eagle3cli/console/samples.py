"""Some training rows as a run stores them, for its report: green is trained, red is not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from typing import TYPE_CHECKING, Any

from eagle3cli.console.tokens import edges, title, visible

if TYPE_CHECKING:
    from eagle3cli.data.inspect.show import RowView

BEFORE = 150
MOST = 600
"""Pieces shown of a row: some before its first reply, and so many in all."""
STYLE = """
.sample { font-size: .85rem; line-height: 1.55; white-space: pre-wrap; overflow-wrap: anywhere; margin: .4rem 0;
  padding: .8rem; background: var(--card); border: 1px solid var(--rule); border-radius: 8px }
.sample b { color: var(--dim) } .t { color: #116329; background: #2da44e24 } .u { color: #a40e26 }
.m { text-decoration: underline wavy } .edges { color: var(--dim); font-size: .82rem }
.given { color: var(--dim) } .accepted { color: #0a5c36; background: #2da44e2e }
.own { color: #0550ae; background: #0969da22 }
.rejected { color: #a40e26; text-decoration: line-through }
@media (prefers-color-scheme: dark) {
  .t, .accepted { color: #5fd784 } .u, .rejected { color: #ff8a80 } .own { color: #79c0ff } }
"""


def sample_of(row: RowView) -> dict[str, Any]:
    """What a run keeps of a row: its title, its replies' edges, and runs of ``[role, text, trained, known]``."""
    pieces = row.pieces
    first = next((i for i, piece in enumerate(pieces) if piece.trained), 0)
    begin = max(0, first - BEFORE)
    shown = pieces[begin : begin + MOST]
    runs = groupby(shown, key=lambda piece: (piece.role, piece.trained, piece.known))
    return {
        "title": title(row),
        "edges": list(edges(row))[:8],
        "before": begin,
        "behind": len(pieces) - begin - len(shown),
        "runs": [
            [role, "".join(piece.text for piece in group), trained, known] for (role, trained, known), group in runs
        ],
    }


def html_samples(samples: Sequence[Mapping[str, Any]]) -> str:
    """Samples as HTML; every text is escaped."""
    parts = ['<p><span class="t">trained</span> <span class="u">not trained</span>']
    parts.append(' <span class="m">unknown to the draft</span></p>' if any(map(_unknown, samples)) else "</p>")
    for row in samples:
        parts.append(f'<p class="note">{escape(str(row["title"]))}</p><pre class="sample">')
        parts.append(f"<b>[{row['before']:,} pieces before]</b>\n" if row["before"] else "")
        for role, runs in groupby(row["runs"], key=lambda run: run[0]):
            parts.append(f"<b>[{escape(str(role))}]</b>\n" if role else "")
            for _, text, trained, known in runs:
                classes = ("t" if trained else "u") + ("" if known else " m")
                parts.append(f'<span class="{classes}">{escape(visible(str(text)))}</span>')
            parts.append("\n")
        parts.append(f"<b>[{row['behind']:,} pieces behind]</b>" if row["behind"] else "")
        parts.append("</pre>" + "".join(f'<p class="edges">{escape(str(line))}</p>' for line in row["edges"]))
    return "".join(parts)


def _unknown(row: Mapping[str, Any]) -> bool:
    return any(not known for _, _, _, known in row["runs"])
