"""A dense twin of the kernel of flex_attention: differentiable on a CPU, where torch's own has a forward pass only."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask


def dense_flex(
    query: Tensor, key: Tensor, value: Tensor, *, block_mask: BlockMask, enable_gqa: bool, **asked: Any
) -> tuple[Tensor, Any]:
    """Output and log-sum-exp, by whichever of torch's two ways the caller asked for it (``asked``)."""
    group = query.shape[1] // key.shape[1] if enable_gqa else 1
    keys, values = (states.repeat_interleave(group, 1).float() for states in (key, value))
    scores = query.float() @ keys.transpose(-1, -2) * query.shape[-1] ** -0.5
    at_Q1 = torch.arange(query.shape[2], device=query.device)[:, None]
    at_1S = torch.arange(key.shape[2], device=query.device)[None]
    zero = torch.zeros((), dtype=torch.long, device=query.device)
    scores = scores.masked_fill(~block_mask.mask_mod(zero, zero, at_Q1, at_1S), float("-inf"))
    lse = torch.logsumexp(scores, -1)
    # A query without a key gives 0, not NaN, as the kernel does.
    weights = torch.where(lse[..., None] == float("-inf"), 0.0, (scores - lse[..., None]).exp())
    out = (weights @ values).to(query.dtype)
    return out, SimpleNamespace(lse=lse) if "return_aux" in asked else lse
