"""How the next token is chosen, and what it is drawn from: for decoding, and for what an evaluation says of it.

Imports no torch, so that commands that talk to servers need none. The shape legend is in ``models/draft.py``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Sampling:
    """Temperature 0 is greedy, ``top_k`` 0 keeps all tokens."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


def probabilities(logits: Tensor, sampling: Sampling) -> Tensor:
    """What a token is drawn from at the temperature, ``[..., V]``: cut to ``top_k``, then to ``top_p`` of what is left,
    and normalised again."""
    probs: Tensor = (logits.float() / sampling.temperature).softmax(-1)
    if not sampling.top_k and sampling.top_p >= 1:
        return probs
    vocab_size = probs.shape[-1]
    kept, ids = probs.topk(min(sampling.top_k or vocab_size, vocab_size), dim=-1)
    kept = kept / kept.sum(-1, keepdim=True)
    before = kept.cumsum(-1) - kept
    kept = kept.masked_fill(before >= sampling.top_p, 0)
    return probs.new_zeros(probs.shape).scatter(-1, ids, kept / kept.sum(-1, keepdim=True))
