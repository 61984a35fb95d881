"""Attention of one unroll depth through ``flex_attention``: the choice on CUDA, where it is compiled.

The depth-0 part, packed sequences and pruned rows included, is one call with a block mask that returns its
log-sum-exp; the rows' own keys are merged by plain autograd, which flows through the log-sum-exp too. On a CPU
flex_attention has a forward pass only, which the tests hold against :func:`eagle3cli.training.attention.attend`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from eagle3cli.training.attention import Own, QueryRows, merge_own

AuxRequest: Any = getattr(flex, "AuxRequest", None)
"""How torch 2.9 and newer are asked for the log-sum-exp; torch 2.8 takes ``return_lse``."""

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def attend_flex(query_RND: Tensor, keys_SKD: Tensor, values_SKD: Tensor, own: Own, rows: QueryRows) -> Tensor:
    """Attention output ``[R, N, D]``; the same contract as :func:`eagle3cli.training.attention.attend`."""
    device = query_RND.device
    block_mask = create_block_mask(
        mask_mod(rows), B=None, H=None, Q_LEN=len(query_RND), KV_LEN=len(keys_SKD), device=device.type
    )
    kernel = _compiled() if device.type == "cuda" else flex_attention
    query, keys, values = (states.transpose(0, 1)[None] for states in (query_RND, keys_SKD, values_SKD))
    grouped = keys.shape[1] != query.shape[1]
    if AuxRequest is None:
        out, lse = kernel(query, keys, values, block_mask=block_mask, enable_gqa=grouped, return_lse=True)
    else:
        wanted = AuxRequest(lse=True)
        out, aux = kernel(query, keys, values, block_mask=block_mask, enable_gqa=grouped, return_aux=wanted)
        lse = aux.lse
    out_RND: Tensor = out[0].transpose(0, 1)
    lse_RN = lse[0].transpose(0, 1)
    if not own:
        return out_RND
    return merge_own(query_RND, out_RND, lse_RN.float(), [states for pair in own for states in pair])[0]


def mask_mod(rows: QueryRows) -> MaskMod:
    """Whether query row q may see depth-0 key k: the keys of its own sequence up to its own position."""
    device = rows.rows_R.device
    bounds = torch.tensor(rows.bounds, device=device)
    begin_R = bounds[torch.searchsorted(bounds, rows.rows_R, right=True) - 1]
    rows_R = rows.rows_R

    def visible(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (begin_R[q] <= k) & (k <= rows_R[q])

    return visible


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention)
