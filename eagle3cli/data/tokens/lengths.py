"""What a maximum length leaves of rows: how many stay whole, and how many reply tokens there are to train on.

Counted while rows are tokenized, for lengths on either side of the one that is asked for, so that one can be chosen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

LENGTHS = tuple(2**n for n in range(9, 18))
"""Maximum lengths that are counted besides the one that is asked for: 512 to 131,072 tokens."""
ENOUGH = 0.99
"""Share of the reply tokens that a suggested length keeps, as a suggested vocabulary covers."""
Counted = npt.NDArray[np.int64]
"""``[2, L + 1]``: rows that stay whole and reply tokens that stay, for every length and without a limit."""


def count_kept(tokens: int, replies: Sequence[tuple[int, int]], max_length: int) -> Counted:
    """What the lengths leave of one row of so many tokens, with replies at ``[first, last)``.

    The lengths are :data:`LENGTHS`, then ``max_length``.
    """
    limits = np.array([*LENGTHS, max_length, max(tokens, max_length)])
    kept = np.zeros(len(limits), dtype=np.int64)
    for first, last in replies:
        kept += np.clip(limits, first, last) - first
    return np.stack((limits >= tokens, kept))


def no_rows() -> Counted:
    """The counts of no row at all."""
    return np.zeros((2, len(LENGTHS) + 2), dtype=np.int64)


def sum_kept(rows: Iterable[Counted]) -> Counted:
    """The counts of several rows."""
    return sum(rows, start=no_rows())


def kept_summary(counted: Counted, max_length: int) -> dict[str, Any]:
    """Shares of rows and of reply tokens that lengths keep, for the summary of a cache.

    Lengths beyond the first that keeps all are left out; ``suggested`` is the smallest power of two that keeps enough.
    """
    rows, replies = counted / np.maximum(1, counted[:, -1:])
    shares = {length: (float(rows[at]), float(replies[at])) for at, length in enumerate(LENGTHS)}
    longest = next((length for length, (whole, _) in shares.items() if whole == 1), LENGTHS[-1])
    suggested = next((length for length, (_, share) in shares.items() if share >= ENOUGH), LENGTHS[-1])
    return {
        "rows": float(rows[-2]),
        "reply_tokens": float(replies[-2]),
        "max_length": max_length,
        "suggested": suggested,
        "by_length": {length: list(pair) for length, pair in shares.items() if length <= longest},
    }


def kept_lines(summary: dict[str, Any]) -> list[str]:
    """For people: what the maximum length costs, and which would keep enough; nothing where all rows stay whole."""
    if summary["rows"] == 1:
        return []
    lengths = {int(length): pair for length, pair in summary["by_length"].items()}
    longer = [
        f"{length:,}: {_percent(rows)} and {_percent(replies)}"
        for length, (rows, replies) in lengths.items()
        if length > summary["max_length"]
    ]
    lines = [
        f"max_length {summary['max_length']:,} keeps {_percent(summary['rows'])} of rows whole and "
        f"{_percent(summary['reply_tokens'])} of reply tokens" + (f"; {', '.join(longer)}" if longer else "")
    ]
    if summary["reply_tokens"] < ENOUGH:
        lines.append(
            f"suggested: --max-length {summary['suggested']}, the smallest power of two that keeps 99% of reply tokens"
        )
    return lines


def _percent(share: float) -> str:
    """``99.9%`` for all but a few: 100% is said of all alone."""
    return "100%" if share == 1 else f"{min(share, 0.999):.1%}"
