"""Exact speculative sampling: what a draft proposed is kept or replaced so that the text is drawn as the target draws.

A proposal x, drawn from the draft's q, is kept with probability min(1, p(x) / q(x)); the first that is not kept is
replaced by a draw from what p has over q, max(p - q, 0) normalised; after a whole chain one more token is drawn from p.
Every token is then distributed as p alone would have it, whatever q is.

Shapes: B rows, k proposals, V target's vocabulary, Vd draft's vocabulary.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor


def draws(streams: Sequence[random.Random], count: int, device: torch.device) -> Tensor:
    """``[B, count]`` numbers in [0, 1), every row's from its own stream: a reply does not depend on its neighbours."""
    return torch.tensor(
        [[stream.random() for _ in range(count)] for stream in streams], dtype=torch.float64, device=device
    )


def draw(chances_BV: Tensor, draws_B: Tensor) -> Tensor:
    """One token per row, ``[B]``, from chances that need not sum to one."""
    bounds_BV = chances_BV.double().cumsum(-1)
    aims_B1 = (draws_B * bounds_BV[:, -1])[:, None].contiguous()
    return torch.searchsorted(bounds_BV, aims_B1, right=True).clamp(max=bounds_BV.shape[1] - 1)[:, 0]


def keep_or_replace(
    chances_BQV: Tensor, proposed_Bk: Tensor, draft_BkVd: Tensor, draft_ids_Vd: Tensor, draws_Bk: Tensor, last_B: Tensor
) -> tuple[Tensor, Tensor]:
    """How many proposals each row keeps, ``[B]``, and its tokens ``[B, k+1]``: those kept, then the drawn one.

    ``chances`` are the target's after the newest token and after each proposal, ``draft`` those that each proposal was
    drawn from; ``draws`` decide on the proposals, ``last`` on the drawn token. Tokens behind the drawn one are junk.
    """
    k = proposed_Bk.shape[1]
    if k == 0:
        return proposed_Bk.new_zeros(len(proposed_Bk)), draw(chances_BQV[:, 0], last_B)[:, None]
    rows_B = torch.arange(len(proposed_Bk), device=proposed_Bk.device)
    draft_BkV = torch.zeros_like(chances_BQV[:, :k]).index_copy_(2, draft_ids_Vd, draft_BkVd.to(chances_BQV.dtype))
    wanted_Bk = chances_BQV[:, :k].gather(2, proposed_Bk[..., None])[..., 0]
    offered_Bk = draft_BkV.gather(2, proposed_Bk[..., None])[..., 0]
    kept_B = (draws_Bk * offered_Bk < wanted_Bk).long().cumprod(1).sum(1)
    from_BV = chances_BQV[rows_B, kept_B]
    over_BV = (from_BV - draft_BkV[rows_B, kept_B.clamp(max=k - 1)]).clamp(min=0)
    # A rejection has p < q at the proposal, so p is over q elsewhere; rounding alone can leave nothing.
    replaced_B = (kept_B < k) & (over_BV.sum(-1) > 0)
    from_BV = torch.where(replaced_B[:, None], over_BV, from_BV)
    tokens_BQ = torch.cat((proposed_Bk, proposed_Bk.new_zeros(len(proposed_Bk), 1)), 1)
    tokens_BQ[rows_B, kept_B] = draw(from_BV, last_B)
    return kept_B, tokens_BQ
