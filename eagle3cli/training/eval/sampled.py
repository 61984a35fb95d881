"""Acceptance at a temperature: what exact speculative sampling is expected to accept on text that the target drew.

A draft token x that was drawn from q is accepted with probability min(1, p(x) / q(x)), else a token from max(p - q, 0)
takes its place (``serving.decode.speculate``). p is the target's distribution at the temperature, cut to top_k and
top_p, over the whole vocabulary; q is the draft's at the chain's depth, cut in the same way, over its own. So a token v
comes out accepted with min(p(v), q(v)), 0 where the draft has no v, and the proposal is accepted with the chance

    a = sum_v min(p(v), q(v)).

Whatever q is, v comes out with p(v) in all. Given that it came out, it was hence the draft's own with probability

    r(v) = min(p(v), q(v)) / p(v) = min(1, q(v) / p(v)).

These hold at every depth given the tokens before, and a chain goes on only from tokens that were accepted, which are
those of the text. A text and where its verification passes begin have therefore the probability of a product over its
tokens x_t, p(x_t) times r(x_t) where it was accepted or 1 - r(x_t) where the target put it there (a bonus token behind
k accepted ones: 1). The product of the p is the chance of the text under plain decoding. So given a text that the
target drew, where passes begin is a Markov chain over its positions with known chances: a pass that begins where t
tokens are known accepts j tokens with

    r_1 r_2 ... r_j (1 - r_{j+1}),    j < k;    r_1 ... r_k,    j = k,

and how many passes the text takes is expected exactly, with nothing drawn (``simulate``). Tokens by
passes, over texts drawn at this temperature, is what the decoder's own count goes to. A product of means, or of the
a's, is not: r and the a that follows depend on the same token. At temperature 0 all r are 0 or 1.

The shape legend is in ``models/draft.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from eagle3cli.backends.batches.batch import TargetBatch
from eagle3cli.backends.target.logits import Head
from eagle3cli.models.draft import Draft
from eagle3cli.models.sampling import Sampling, probabilities
from eagle3cli.runtime.distributed import Ranks
from eagle3cli.training.eval.simulate import AcceptanceCounts, Accepts, simulate
from eagle3cli.training.ttt.loss import all_teachers, chunk_elements, positions_in
from eagle3cli.training.ttt.unroll import PositionPlan

DRAWN_ELSEWHERE = 0.1
"""How far the mean probability of a text's tokens may be from that of drawn text, as a share of it."""
SIGMAS = 4.0
"""And by how many standard deviations of such a mean at least."""


@dataclass
class SampledAcceptance:
    """What an evaluation says of one way to sample; sums over replies."""

    sampling: Sampling
    by_k: list[AcceptanceCounts]
    """For k = 1, 2, ..."""
    overlap_T: list[float]
    """Sum of a over all positions, by draft step: teacher-forced, as an accuracy is."""
    positions_T: list[float]
    text: list[float] = field(default_factory=lambda: [0.0] * 4)
    """Of the reply tokens: how many, the sum of p(x), and of its mean and variance for text drawn at the temperature.

    Drawn from p, p(x) has the mean sum_v p(v)^2 and the second moment sum_v p(v)^3.
    """

    @classmethod
    def empty(cls, sampling: Sampling, draft_steps: int) -> SampledAcceptance:
        """Nothing counted yet."""
        by_k = [AcceptanceCounts(accepted_at=[0.0] * k) for k in range(1, draft_steps + 1)]
        return cls(sampling, by_k, [0.0] * draft_steps, [0.0] * draft_steps)

    @property
    def acceptance_lengths(self) -> list[float]:
        """Acceptance length for k = 1, 2, ..."""
        return [counts.acceptance_length for counts in self.by_k]

    @property
    def overlap(self) -> list[float]:
        """Mean of sum_v min(p(v), q(v)) by draft step."""
        return [total / max(1.0, count) for total, count in zip(self.overlap_T, self.positions_T, strict=True)]

    @property
    def drawn_here(self) -> bool:
        """Whether the replies may have been drawn as the sampling says: only then the lengths are a server's."""
        _, probability, expected, variance = self.text
        apart = abs(probability - expected)
        return apart <= max(DRAWN_ELSEWHERE * expected, SIGMAS * math.sqrt(max(0.0, variance)))

    @property
    def text_probability(self) -> tuple[float, float]:
        """Mean probability of the replies' tokens, and what it is in text drawn as the sampling says."""
        count, probability, expected, _ = self.text
        return probability / max(1.0, count), expected / max(1.0, count)

    def add_reply(self, accept_TN: Accepts, span: tuple[int, int]) -> None:
        """Add what a reply is expected to take."""
        for k, counts in enumerate(self.by_k, start=1):
            counts.add(simulate(accept_TN, span, k))

    def all_reduce(self, ranks: Ranks) -> None:
        """Make the sums those of all ranks."""
        for counts in self.by_k:
            counts.all_reduce(ranks)
        size = len(self.by_k)
        sums = ranks.all_reduce_sum([*self.overlap_T, *self.positions_T, *self.text])
        self.overlap_T, self.positions_T, self.text = sums[:size], sums[size : 2 * size], sums[2 * size :]

    def add_batch(
        self, batch: TargetBatch, normed: list[Tensor], plan: PositionPlan, draft: Draft, head: Head
    ) -> Tensor:
        """Add the overlap of p and q at every position of ``plan``; returns r of the text's tokens, ``[T, N]``.

        ``normed`` are the draft's states ``[L, H]`` of every step, ``head`` is the target's, over its whole vocabulary.
        """
        accept_TN = torch.zeros(len(normed), len(batch.token_ids_N), device=batch.token_ids_N.device)
        index_V = torch.full((len(head),), -1, device=accept_TN.device)
        index_V[draft.draft_ids] = torch.arange(len(draft.draft_ids), device=accept_TN.device)
        rows = max(1, chunk_elements(accept_TN.device.type) // len(head))
        for position_U in all_teachers(plan).split(rows):
            p_UV = probabilities(head(batch.last_NH[position_U].to(head.weight_VH.dtype)), self.sampling)
            self._add_text(p_UV, batch.token_ids_N[position_U + 1])
            p_UW = p_UV[:, draft.draft_ids]
            for step, (positions, states_LH) in enumerate(zip(plan.steps, normed, strict=True)):
                part = positions_in(positions.teacher_L, position_U)
                teacher_L = positions.teacher_L[part]
                at_L = torch.searchsorted(position_U, teacher_L)
                q_LW = probabilities(F.linear(states_LH[part], draft.lm_head.weight), self.sampling)
                self.overlap_T[step] += float(torch.minimum(p_UW[at_L], q_LW).sum())
                self.positions_T[step] += len(teacher_L)
                text_L = batch.token_ids_N[teacher_L + 1]
                p_L = p_UV[at_L].gather(1, text_L[:, None])[:, 0]
                index_L = index_V[text_L]
                q_L = q_LW.gather(1, index_L.clamp(min=0)[:, None])[:, 0] * (index_L >= 0)
                # Text with p = 0 is not drawn here; the target would have put another token in its place.
                accept_TN[step, teacher_L - 1 - step] = torch.where(p_L > 0, (q_L / p_L).clamp(max=1), 0.0)
        return accept_TN

    def _add_text(self, p_UV: Tensor, text_U: Tensor) -> None:
        square_U = p_UV.square().sum(-1)
        variance_U = p_UV.pow(3).sum(-1) - square_U.square()
        p_U = p_UV.gather(1, text_U[:, None])[:, 0]
        parts = torch.stack((p_U.sum(), square_U.sum(), variance_U.sum())).tolist()
        self.text = [a + b for a, b in zip(self.text, (float(len(text_U)), *parts), strict=True)]


def drawn_elsewhere(sampled: Sequence[SampledAcceptance]) -> str | None:
    """What people are told where the replies were not drawn as the acceptance is told for."""
    for each in sampled:
        if each.drawn_here:
            continue
        has, should = each.text_probability
        temperature = f"{each.sampling.temperature:g}"
        return (
            f"the held-out replies were not drawn at temperature {temperature}: their tokens' mean probability there "
            f"is {has:.2f}, not {should:.2f}; acceptance at it is an estimate, exact on replies of "
            f"eagle3 regenerate --temperature {temperature}"
        )
    return None
