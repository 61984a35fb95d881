"""Held-out acceptance length of a draft, for every k from one pass over the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from eagle3cli.backends.batches.batch import BatchSource, TargetBatch
from eagle3cli.models.draft import Draft
from eagle3cli.runtime.distributed import SINGLE_PROCESS, Ranks
from eagle3cli.runtime.report import Reporter
from eagle3cli.training.eval.simulate import POSITIONS, WalkCounts, agreement, reply_spans, walk, walk_by_position
from eagle3cli.training.ttt.loss import best_tokens
from eagle3cli.training.ttt.positions import RowPlan, plan_rows
from eagle3cli.training.ttt.unroll import unroll


@dataclass(frozen=True)
class Evaluation:
    """What a pass over held-out rows says of a draft."""

    walks: tuple[WalkCounts, ...]
    """Counts for k = 1, 2, ...; ``walks[k-1].acceptance_length`` is what a server reports for k chain steps."""
    first_turns: WalkCounts
    later_turns: WalkCounts
    """The deepest k, split by the reply's place in its conversation."""
    by_position: dict[str, WalkCounts]
    """The deepest k, split by the reply's tokens known before the step; ranges without a step are left out."""
    accuracy: tuple[float, ...]
    """Teacher-forced share of right tokens per depth."""
    rows: int
    replies: int

    def at(self, k: int) -> float:
        """Acceptance length for k draft steps."""
        return self.walks[k - 1].acceptance_length


@torch.no_grad()
def evaluate(
    draft: Draft,
    source: BatchSource,
    embedding_VH: Tensor,
    *,
    depths: int,
    rows: Sequence[int],
    batch_size: int,
    report: Reporter,
    ranks: Ranks = SINGLE_PROCESS,
) -> Evaluation:
    """Walk the replies of ``rows``, a part of them on each rank; meaningful on text that the target wrote greedily."""
    wanted, rows = len(rows), rows[ranks.rank :: ranks.world_size]
    most = len(range(0, wanted, ranks.world_size))  # of the first rank; the others take part in as many batches
    walks = [WalkCounts() for _ in range(depths)]
    turns = (WalkCounts(), WalkCounts())
    positions = {name: WalkCounts() for name in POSITIONS}
    right, counted, replies = [0] * depths, [0] * depths, 0
    with report.task("eval", total=len(rows)) as task:
        for at in range(0, most, batch_size):
            part = rows[at : at + batch_size]
            if not part:
                source.take_part()
                continue
            batch = source.batch(part)
            agrees, plan = agreements(draft, batch, embedding_VH, depths)
            for i, row in enumerate(plan.depths):
                right[i] += sum(agrees[i])
                counted[i] += row.counted
            starts: set[int] = set()
            for span in reply_spans(batch.loss_mask_N.tolist(), batch.bounds):
                sequence = max(b for b in range(len(batch.bounds) - 1) if batch.bounds[b] <= span[0])
                for k in range(1, depths + 1):
                    counts = walk(agrees, span, k)
                    walks[k - 1].add(counts)
                turns[sequence in starts].add(counts)
                for name, part_counts in walk_by_position(agrees, span, depths).items():
                    positions[name].add(part_counts)
                starts.add(sequence)
                replies += 1
            task.advance(len(part), acceptance=f"{walks[-1].acceptance_length:.3f}")
    for counts in (*walks, *turns, *positions.values()):
        counts.add_up(ranks)
    replies, *by_depth = map(int, ranks.all_reduce_sum([replies, *right, *counted]))
    accuracy = tuple(r / max(1, c) for r, c in zip(by_depth[:depths], by_depth[depths:], strict=True))
    seen = {name: counts for name, counts in positions.items() if counts.steps}
    return Evaluation(tuple(walks), *turns, seen, accuracy, wanted, replies)


def agreements(draft: Draft, batch: TargetBatch, embedding_VH: Tensor, depths: int) -> tuple[list[list[bool]], RowPlan]:
    """Whether the draft's token equals the text's, for every depth and packed row."""
    ids = batch.token_ids_N
    # Row p at depth i answers x_{p+2+i}, and its teacher stands one position before that.
    expressible = draft.t2d[torch.cat((ids[1:], ids[-1:]))]
    plan = plan_rows(batch.loss_mask_N, batch.bounds, expressible, depths, "serving")
    if plan.empty:
        return [[False] * len(ids) for _ in range(depths)], plan
    normed = unroll(draft, ids, batch.aux_NC.to(draft.fc.weight.dtype), embedding_VH, plan)
    found = best_tokens(normed, draft.lm_head.weight, draft.draft_ids)
    return agreement(found, [rows.rows_R[rows.kept_r] for rows in plan.depths], ids), plan
