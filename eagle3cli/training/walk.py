"""Acceptance length without a server: replay greedy chain decoding on text that the target wrote.

One teacher-forced pass says, for every row and depth, whether the draft's token is the text's. Decoding with k draft
steps then starts at the first draft row of a reply (its first token came from the prefill), accepts the leading depths
that agree, gains one token from the target's own verification, and goes on from there.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class WalkCounts:
    """Tokens and verification steps, summed over replies, for one k."""

    tokens: int = 0
    steps: int = 0
    accepted_at: list[int] = field(default_factory=list)
    """Steps whose depth-i proposal was accepted."""

    @property
    def acceptance_length(self) -> float:
        """New tokens per verification step; 1.0 is no help from the draft."""
        return self.tokens / self.steps if self.steps else 0.0

    @property
    def per_position(self) -> list[float]:
        """Share of the steps in which the proposal at each depth was accepted."""
        return [n / self.steps for n in self.accepted_at] if self.steps else []

    def add(self, other: WalkCounts) -> None:
        """Add the counts of other replies."""
        self.tokens += other.tokens
        self.steps += other.steps
        width = max(len(self.accepted_at), len(other.accepted_at))
        pad = [counts + [0] * (width - len(counts)) for counts in (self.accepted_at, other.accepted_at)]
        self.accepted_at = [a + b for a, b in zip(*pad, strict=True)]


def reply_spans(loss_mask: list[bool], bounds: tuple[int, ...]) -> list[tuple[int, int]]:
    """``(first, end)`` packed positions of every reply; a reply never crosses a sequence."""
    spans = []
    for begin, end in zip(bounds[:-1], bounds[1:], strict=True):
        first = None
        for t in range(begin, end):
            if loss_mask[t] and first is None:
                first = t
            if not loss_mask[t] and first is not None:
                spans.append((first, t))
                first = None
        if first is not None:
            spans.append((first, end))
    return spans


def walk(agrees_TN: list[list[bool]], span: tuple[int, int], k: int) -> WalkCounts:
    """Decode one reply with k draft steps.

    ``agrees_TN[i][p]``: the draft's token for row p at depth i is the text's ``x_{p+2+i}``. The reply's tokens after
    its first are counted; a step that reaches the reply's end counts the tokens that were left.
    """
    first, end = span
    counts = WalkCounts(accepted_at=[0] * k)
    known = first
    while known < end - 1:
        left = end - 1 - known
        row = known - 1
        accepted = 0
        while accepted < min(k, left) and agrees_TN[accepted][row]:
            counts.accepted_at[accepted] += 1
            accepted += 1
        gained = min(accepted + 1, left)
        counts.tokens += gained
        counts.steps += 1
        known += gained
    return counts


def agreement(found: list[Tensor], rows: list[Tensor], token_ids_N: Tensor) -> list[list[bool]]:
    """Where the draft's tokens (per depth, for packed positions ``rows[i]``) equal the text, ``[T][N]``."""
    table = []
    for depth, (tokens_r, rows_r) in enumerate(zip(found, rows, strict=True)):
        row_N = torch.zeros(len(token_ids_N), dtype=torch.bool, device=token_ids_N.device)
        row_N[rows_r] = tokens_r == token_ids_N[rows_r + 2 + depth]
        table.append(row_N.tolist())
    return table
