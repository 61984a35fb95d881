"""Which rows run together: neighbours by length, so that what pads them to the longest one stays small."""

from __future__ import annotations

from collections.abc import Sequence

PASS_TOKENS = 256
"""Tokens that a GPU runs in about the time in which it reads all weights once more: the padding of a pass on a GPU."""
CPU_PASS_TOKENS = 32
"""The same of a CPU."""


def similar_lengths(
    lengths: Sequence[int], *, max_tokens: int | None = None, max_padding: int | None = None
) -> list[list[int]]:
    """Places of ``lengths`` in groups: longest first, equal ones in their order, each place in one group.

    A group has at most ``max_tokens`` tokens (a longer row comes alone), and padding it to its longest row adds at most
    ``max_padding``; None is no bound.
    """
    groups: list[list[int]] = []
    tokens = padding = 0
    for at in sorted(range(len(lengths)), key=lambda place: (-lengths[place], place)):
        more = lengths[groups[-1][0]] - lengths[at] if groups else 0
        too_long = max_tokens is not None and tokens + lengths[at] > max_tokens
        too_short = max_padding is not None and padding + more > max_padding
        if not groups or too_long or too_short:
            groups.append([])
            tokens = padding = more = 0
        groups[-1].append(at)
        tokens += lengths[at]
        padding += more
    return groups
