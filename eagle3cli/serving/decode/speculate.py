"""Exact speculative sampling: what a draft proposed is accepted or replaced so that the text is drawn as the target
draws.

A draft token x, drawn from the draft's q, is accepted with probability min(1, p(x) / q(x)); the first that is not is
replaced by a draw from what p has over q, max(p - q, 0) normalised; after a whole chain one bonus token is drawn from
p. Every token is then distributed as p alone would have it, whatever q is.

The shape legend is in ``models/draft.py``; here T counts draft steps, and Q = T + 1.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from eagle3cli.serving.decode.generate import draw


def uniform(rngs: Sequence[random.Random], count: int, device: torch.device) -> Tensor:
    """Random numbers in [0, 1), ``[B, count]``, each row's from its own generator: replies do not depend on others."""
    return torch.tensor([[rng.random() for _ in range(count)] for rng in rngs], dtype=torch.float64, device=device)


def rejection_sample(
    target_probs_BQV: Tensor, draft_tokens_BT: Tensor, draft_probs_BTW: Tensor, draft_ids_W: Tensor, uniform_BQ: Tensor
) -> tuple[Tensor, Tensor]:
    """How many draft tokens each sequence accepts, ``[B]``, and its tokens ``[B, Q]``: those accepted, then one drawn.

    ``target_probs`` are the target's after the newest token and after each draft token, ``draft_probs`` what each draft
    token was drawn from, over the target tokens ``draft_ids``. The first T numbers of ``uniform`` decide on the draft
    tokens, the last one on the drawn token. Tokens behind the drawn one are junk.
    """
    draft_steps = draft_tokens_BT.shape[1]
    # Q rows, not T: after a whole chain q is zero, so that p - q is p and the bonus token needs no case of its own.
    draft_probs_BQV = torch.zeros_like(target_probs_BQV)
    if draft_steps:
        draft_probs_BQV[:, :draft_steps].index_copy_(2, draft_ids_W, draft_probs_BTW.to(target_probs_BQV.dtype))
    p_BT = target_probs_BQV[:, :draft_steps].gather(2, draft_tokens_BT[..., None])[..., 0]
    q_BT = draft_probs_BQV[:, :draft_steps].gather(2, draft_tokens_BT[..., None])[..., 0]
    # u * q < p in place of u < p / q: no division by zero. A token counts if all before it were accepted.
    accepted_B = (uniform_BQ[:, :-1] * q_BT < p_BT).long().cumprod(1).sum(1)
    rows_B = torch.arange(len(draft_tokens_BT), device=draft_tokens_BT.device)
    p_BV = target_probs_BQV[rows_B, accepted_B]
    residual_BV = (p_BV - draft_probs_BQV[rows_B, accepted_B]).clamp(min=0)
    # A rejection has p < q at the draft token, so p is over q elsewhere; rounding alone can leave nothing.
    drawn_from_BV = torch.where(residual_BV.sum(-1, keepdim=True) > 0, residual_BV, p_BV)
    tokens_BQ = torch.cat((draft_tokens_BT, draft_tokens_BT.new_zeros(len(draft_tokens_BT), 1)), 1)
    tokens_BQ[rows_B, accepted_B] = draw(drawn_from_BV, uniform_BQ[:, -1])
    return accepted_B, tokens_BQ
