"""Simulated acceptance: greedy chain decoding replayed, without a server, on text that the target wrote.

One teacher-forced pass says, for every position and draft step, whether the draft's token is the text's. Decoding with
k draft steps then starts at the first draft position of a reply (its first token came from the prefill), accepts the
leading steps that agree, gains one token from the target's own verification, and goes on from there. With chances in
place of agreement it is what sampling is expected to take (``sampled.py``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from eagle3cli.runtime.distributed import Ranks

Accepts = Sequence[Sequence[float]]
"""``[T][N]``: by draft step and position, whether a proposal is accepted, or its chance of it."""
NONE = -1
"""No token."""
MOST_PASSES = 120
PROMPT = 24
"""Passes of a decoded reply, and tokens before it, that are kept for people."""


@dataclass
class AcceptanceCounts:
    """Tokens and verification steps, summed over replies, for one k; expected numbers where chances were summed."""

    tokens: float = 0
    steps: float = 0
    accepted_at: list[float] = field(default_factory=list)
    """Steps whose depth-i proposal was accepted, and is part of the reply."""

    @property
    def acceptance_length(self) -> float:
        """New tokens per verification step."""
        return self.tokens / self.steps if self.steps else 0.0

    @property
    def per_position(self) -> list[float]:
        """Share of the steps in which the proposal at each depth was accepted."""
        return [n / self.steps for n in self.accepted_at] if self.steps else []

    def add(self, other: AcceptanceCounts) -> None:
        """Add the counts of other replies."""
        self.tokens += other.tokens
        self.steps += other.steps
        width = max(len(self.accepted_at), len(other.accepted_at))
        pad = [counts + [0] * (width - len(counts)) for counts in (self.accepted_at, other.accepted_at)]
        self.accepted_at = [a + b for a, b in zip(*pad, strict=True)]

    def all_reduce(self, ranks: Ranks) -> None:
        """Make the counts those of all ranks."""
        width = int(ranks.all_reduce_max([len(self.accepted_at)])[0])
        padded = self.accepted_at + [0] * (width - len(self.accepted_at))
        self.tokens, self.steps, *self.accepted_at = ranks.all_reduce_sum([self.tokens, self.steps, *padded])


def reply_spans(loss_mask: list[bool], cu_seqlens: tuple[int, ...]) -> list[tuple[int, int]]:
    """``(first, end)`` packed positions of every reply; a reply never crosses a sequence."""
    spans = []
    for begin, end in zip(cu_seqlens[:-1], cu_seqlens[1:], strict=True):
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


def simulate(accept_TN: Accepts, span: tuple[int, int], k: int) -> AcceptanceCounts:
    """Decode one reply with k draft steps.

    ``accept_TN[i][p]``: the draft's token for position p at step i is the text's ``x_{p+2+i}``, or the chance that it
    is accepted. The reply's tokens after its first are counted; a step that reaches the reply's end counts the tokens
    that were left.
    """
    counts = AcceptanceCounts(accepted_at=[0] * k)
    for _, step in simulated_steps(accept_TN, span, k):
        counts.add(step)
    return counts


def simulate_by_range(
    accept_TN: Accepts, span: tuple[int, int], k: int, ranges: Mapping[str, float], begin: int
) -> dict[str, AcceptanceCounts]:
    """The same counts, apart by how many tokens behind packed position ``begin`` are known before a step.

    ``ranges`` are their names and ends, ascending: those of the reply (``begin`` is its first position) or those of
    the whole conversation (``begin`` is its sequence's).
    """
    by_range = {name: AcceptanceCounts(accepted_at=[0] * k) for name in ranges}
    for known, step in simulated_steps(accept_TN, span, k):
        behind = span[0] - begin + known
        by_range[next(name for name, end in ranges.items() if behind < end)].add(step)
    return by_range


def simulated_steps(accept_TN: Accepts, span: tuple[int, int], k: int) -> Iterator[tuple[int, AcceptanceCounts]]:
    """Every verification step that a reply may take: how many of its tokens are known before, and the step's counts,
    each by its chance. Where acceptance is certain, so is where steps begin, and the others do not come."""
    first, end = span
    total = max(0, end - 1 - first)
    begins = [0.0] * (total + k + 1)
    """Chance that a step begins where so many of the reply's tokens, the first not counted, are known."""
    begins[0] = 1.0
    for known in range(total):
        chance = begins[known]
        if not chance:
            continue
        most = min(k, total - known)
        reached = chance
        accepted_at = [0.0] * k
        for depth in range(most):
            accepted = reached * accept_TN[depth][first + known - 1]
            begins[known + depth + 1] += reached - accepted
            accepted_at[depth] = accepted
            reached = accepted
        begins[known + most + 1] += reached
        behind_the_end = reached if most == total - known else 0.0
        yield known + 1, AcceptanceCounts(sum(accepted_at) + chance - behind_the_end, chance, accepted_at)


@dataclass(frozen=True)
class DecodedReply:
    """A reply as decoding with a draft produces it, for people to see: token ids, and what became of each."""

    prompt: tuple[int, ...]
    """The last tokens before it."""
    passes: tuple[tuple[tuple[int, ...], int | None, int | None], ...]
    """By pass of the target: the accepted tokens, the proposal that was rejected, and the target's token in its place
    (also after a pass in which all were accepted; None at the reply's end)."""


def decoded_reply(
    agrees_TN: list[list[bool]], proposals_TN: list[list[int]], ids_N: list[int], span: tuple[int, int], k: int
) -> DecodedReply:
    """The passes over one reply with k draft steps; ``proposals_TN[i][p]`` is the draft's token for ``x_{p+2+i}``, or
    ``NONE`` where it gave none."""
    first, end = span
    passes: list[tuple[tuple[int, ...], int | None, int | None]] = []
    for known, step in simulated_steps(agrees_TN, span, k):
        if len(passes) == MOST_PASSES:
            break
        at = first + known
        accepted = int(sum(step.accepted_at))
        own = step.tokens > accepted
        proposed = proposals_TN[accepted][at - 2] if own and accepted < k else NONE
        rejected = None if proposed == NONE else proposed
        passes.append((tuple(ids_N[at : at + accepted]), rejected, ids_N[at + accepted] if own else None))
    return DecodedReply(tuple(ids_N[max(0, first - PROMPT) : first + 1]), tuple(passes))


def agreement_table(tokens: list[Tensor], positions: list[Tensor], token_ids_N: Tensor) -> list[list[bool]]:
    """Where the draft's tokens (per step, for packed positions ``positions[i]``) equal the text, ``[T][N]``."""
    agrees_TN = torch.zeros(len(tokens), len(token_ids_N), dtype=torch.bool, device=token_ids_N.device)
    for step, (tokens_L, position_L) in enumerate(zip(tokens, positions, strict=True)):
        agrees_TN[step, position_L] = tokens_L == token_ids_N[position_L + 2 + step]
    table: list[list[bool]] = agrees_TN.tolist()
    return table


def proposal_table(tokens: list[Tensor], positions: list[Tensor], length: int) -> list[list[int]]:
    """The draft's tokens (per step, for packed positions ``positions[i]``), ``[T][N]``; ``NONE`` elsewhere."""
    proposals_TN = torch.full((len(tokens), length), NONE, device=tokens[0].device)
    for step, (tokens_L, position_L) in enumerate(zip(tokens, positions, strict=True)):
        proposals_TN[step, position_L] = tokens_L
    table: list[list[int]] = proposals_TN.tolist()
    return table
