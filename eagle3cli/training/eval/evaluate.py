"""Held-out acceptance length of a draft, for every number of draft steps k from one pass over the data."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eagle3cli.backends.batches.batch import BatchSource, TargetBatch
from eagle3cli.backends.batches.dealt import own_batch
from eagle3cli.backends.target.logits import Head
from eagle3cli.data.tokens.on_policy import POSITIONS
from eagle3cli.models.draft import Draft
from eagle3cli.models.sampling import Sampling
from eagle3cli.runtime.distributed import SINGLE_PROCESS, Ranks
from eagle3cli.runtime.report import Reporter
from eagle3cli.training.eval.context import CONTEXTS, context_warning
from eagle3cli.training.eval.sampled import SampledAcceptance
from eagle3cli.training.eval.simulate import (
    AcceptanceCounts,
    DecodedReply,
    agreement_table,
    decoded_reply,
    proposal_table,
    reply_spans,
    simulate,
    simulate_by_range,
)
from eagle3cli.training.ttt.attention import attend
from eagle3cli.training.ttt.loss import best_tokens
from eagle3cli.training.ttt.unroll import Attend, PositionPlan, plan_positions, unroll

USUAL_STEPS = 3
"""Draft steps of the reply that people are shown."""


@dataclass(frozen=True)
class Evaluation:
    """What a pass over held-out rows says of a draft."""

    simulated: tuple[AcceptanceCounts, ...]
    """Counts for k = 1, 2, ...; ``simulated[k-1].acceptance_length`` is what a server reports for k chain steps."""
    first_turns: AcceptanceCounts
    later_turns: AcceptanceCounts
    """The largest k, split by the reply's place in its conversation."""
    by_position: dict[str, AcceptanceCounts]
    """The largest k, split by the reply's tokens known before the step; ranges without a step are left out."""
    by_context: dict[str, AcceptanceCounts]
    """The same by the conversation's tokens known before the step."""
    accuracy: tuple[float, ...]
    """Teacher-forced share of right tokens per draft step."""
    rows: int
    replies: int
    decoded: DecodedReply | None = None
    """The first reply that this rank was given, for people to see."""
    sampled: tuple[SampledAcceptance, ...] = ()
    """What is expected at temperatures, one of each way to sample that was asked for."""

    @property
    def acceptance_lengths(self) -> list[float]:
        """Acceptance length for k = 1, 2, ..."""
        return [counts.acceptance_length for counts in self.simulated]

    @property
    def served_lengths(self) -> list[float]:
        """Acceptance length for k = 1, 2, ... by which a draft is judged: at the first temperature, else greedy."""
        return self.sampled[0].acceptance_lengths if self.sampled else self.acceptance_lengths

    @property
    def context_warning(self) -> str | None:
        """What people are told where acceptance falls with the length of the context."""
        return context_warning(
            lengths_by(self.by_context), {name: round(c.steps) for name, c in self.by_context.items()}
        )

    def at(self, k: int) -> float:
        """Acceptance length for k draft steps."""
        return self.simulated[k - 1].acceptance_length


def lengths_by(counts: Mapping[str, AcceptanceCounts]) -> dict[str, float]:
    """Acceptance lengths by the names of the counts."""
    return {name: each.acceptance_length for name, each in counts.items()}


class _Tally:
    """Counts over the batches of one rank."""

    def __init__(self, draft_steps: int, samplings: Sequence[Sampling]) -> None:
        self.draft_steps = draft_steps
        self.sampled = [SampledAcceptance.empty(sampling, draft_steps) for sampling in samplings]
        self.simulated = [AcceptanceCounts() for _ in range(draft_steps)]
        self.turns = (AcceptanceCounts(), AcceptanceCounts())
        self.by_position = {name: AcceptanceCounts() for name in POSITIONS}
        self.by_context = {name: AcceptanceCounts() for name in CONTEXTS}
        self.correct = [0] * draft_steps
        self.counted = [0] * draft_steps
        self.replies = 0
        self.decoded: DecodedReply | None = None

    def keep(self, batch: TargetBatch, agrees_TN: list[list[bool]], proposals_TN: list[list[int]]) -> None:
        """Keep how the first reply of a batch is decoded, with the k that servers usually have."""
        spans = reply_spans(batch.loss_mask_N.tolist(), batch.cu_seqlens)
        if spans:
            k = min(USUAL_STEPS, self.draft_steps)
            self.decoded = decoded_reply(agrees_TN, proposals_TN, batch.token_ids_N.tolist(), spans[0], k)

    def add(self, batch: TargetBatch, agrees_TN: list[list[bool]], plan: PositionPlan) -> None:
        """Replay the replies of a batch."""
        for i, step in enumerate(plan.steps):
            self.correct[i] += sum(agrees_TN[i])
            self.counted[i] += step.counted
        answered: set[int] = set()
        for span in reply_spans(batch.loss_mask_N.tolist(), batch.cu_seqlens):
            sequence = bisect_right(batch.cu_seqlens, span[0]) - 1
            for k, counts in enumerate(self.simulated, start=1):
                counts.add(simulate(agrees_TN, span, k))
            self.turns[sequence in answered].add(simulate(agrees_TN, span, self.draft_steps))
            for by_range, ranges, begin in (
                (self.by_position, POSITIONS, span[0]),
                (self.by_context, CONTEXTS, batch.cu_seqlens[sequence]),
            ):
                for name, part in simulate_by_range(agrees_TN, span, self.draft_steps, ranges, begin).items():
                    by_range[name].add(part)
            answered.add(sequence)
            self.replies += 1

    def add_sampled(
        self, batch: TargetBatch, normed: list[Tensor], plan: PositionPlan, draft: Draft, head: Head | None
    ) -> None:
        """Add what is expected of the batch at the temperatures."""
        for sampled in self.sampled:
            assert head is not None, "the target's probabilities need its whole head"
            accept_TN = sampled.add_batch(batch, normed, plan, draft, head).tolist()
            for span in reply_spans(batch.loss_mask_N.tolist(), batch.cu_seqlens):
                sampled.add_reply(accept_TN, span)

    def evaluation(self, ranks: Ranks, rows: int) -> Evaluation:
        """The counts of all ranks."""
        for counts in (*self.simulated, *self.turns, *self.by_position.values(), *self.by_context.values()):
            counts.all_reduce(ranks)
        for sampled in self.sampled:
            sampled.all_reduce(ranks)
        replies, *by_step = map(int, ranks.all_reduce_sum([self.replies, *self.correct, *self.counted]))
        correct = by_step[: self.draft_steps]
        counted = by_step[self.draft_steps :]
        accuracy = tuple(c / max(1, n) for c, n in zip(correct, counted, strict=True))
        by_position, by_context = (
            {name: counts for name, counts in by_range.items() if counts.steps}
            for by_range in (self.by_position, self.by_context)
        )
        return Evaluation(
            tuple(self.simulated),
            *self.turns,
            by_position,
            by_context,
            accuracy,
            rows,
            replies,
            self.decoded,
            tuple(self.sampled),
        )


@torch.no_grad()
def evaluate(
    draft: Draft,
    source: BatchSource,
    embedding_VH: Tensor,
    *,
    draft_steps: int,
    rows: Sequence[int],
    batch_size: int,
    report: Reporter,
    ranks: Ranks = SINGLE_PROCESS,
    attend: Attend = attend,
    samplings: Sequence[Sampling] = (),
    head: Head | None = None,
) -> Evaluation:
    """Replay the replies of ``rows``, a part on each rank; meaningful on text that the target wrote greedily.

    ``attend`` is the attention of the unroll, which training hands on. For each of ``samplings`` the acceptance that
    exact sampling is expected to have is told, which needs the target's whole ``head`` and is meaningful on text that
    was drawn so.
    """
    by_rank = [rows[rank :: ranks.world_size] for rank in range(ranks.world_size)]
    tally = _Tally(draft_steps, samplings)
    with report.task("eval", total=len(by_rank[ranks.rank])) as bar:
        for at in range(0, len(by_rank[0]), batch_size):  # the first rank has the most rows
            batch = own_batch(source, [part[at : at + batch_size] for part in by_rank], ranks.rank)
            if batch is None:
                continue
            normed, plan = draft_states(draft, batch, embedding_VH, draft_steps, attend, every=bool(samplings))
            tokens, positions = proposals(draft, normed, plan)
            agrees_TN = agreement_table(tokens, positions, batch.token_ids_N)
            if tally.decoded is None:
                tally.keep(batch, agrees_TN, proposal_table(tokens, positions, len(batch.token_ids_N)))
            tally.add(batch, agrees_TN, plan)
            tally.add_sampled(batch, normed, plan, draft, head)
            bar.advance(len(batch.rows), acceptance=f"{tally.simulated[-1].acceptance_length:.3f}")
    return tally.evaluation(ranks, len(rows))


def draft_states(
    draft: Draft,
    batch: TargetBatch,
    embedding_VH: Tensor,
    draft_steps: int,
    attend: Attend = attend,
    *,
    every: bool = False,
) -> tuple[list[Tensor], PositionPlan]:
    """The draft's normed states ``[L, H]`` by draft step, and the positions at which it gives them.

    Positions whose answer the draft vocabulary lacks are left out unless ``every`` is asked for.
    """
    ids_N = batch.token_ids_N
    # Position p at step i answers x_{p+2+i}, and its teacher stands one position before that.
    expressible_N = draft.t2d[torch.cat((ids_N[1:], ids_N[-1:]))].cpu() | every
    plan = plan_positions(batch.loss_mask_N, batch.cu_seqlens, expressible_N, draft_steps, "serving").to(ids_N.device)
    if plan.empty:
        return [batch.aux_NC.new_zeros(0, draft.config.hidden_size) for _ in range(draft_steps)], plan
    return unroll(draft, ids_N, batch.aux_NC.to(draft.fc.weight.dtype), embedding_VH, plan, attend=attend), plan


def proposals(draft: Draft, normed: list[Tensor], plan: PositionPlan) -> tuple[list[Tensor], list[Tensor]]:
    """The draft's tokens by draft step, and the packed positions at which it gives them."""
    tokens = best_tokens(normed, draft.lm_head.weight, draft.draft_ids)
    return tokens, [step.position_R[step.loss_L] for step in plan.steps]
