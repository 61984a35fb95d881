"""Attention of one unroll depth through ``flex_attention``: the choice on CUDA, where it is compiled.

The depth-0 part, packed sequences and pruned rows included, is one call with a block mask that returns its
log-sum-exp; the rows' own keys are merged by plain autograd, which flows through the log-sum-exp too. On a CPU
flex_attention has a forward pass only, which the tests hold against :func:`eagle3cli.training.ttt.attention.attend`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from eagle3cli.training.ttt.attention import Own, QueryRows, merge_own

AuxRequest: Any = getattr(flex, "AuxRequest", None)
"""How torch 2.9 and newer are asked for the log-sum-exp; torch 2.8 takes ``return_lse``."""

BLOCK = 128
"""Rows, and keys, of a block of the kernel."""

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def attend_flex(query_RND: Tensor, keys_SKD: Tensor, values_SKD: Tensor, own: Own, rows: QueryRows) -> Tensor:
    """Attention output ``[R, N, D]``; the same contract as :func:`eagle3cli.training.ttt.attention.attend`."""
    device = query_RND.device
    block_mask = make_block_mask(rows, len(keys_SKD))
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


def make_block_mask(rows: QueryRows, keys: int) -> BlockMask:
    """Which blocks of keys each block of query rows reads: whole, in part (:func:`mask_mod` says where) or not at all.

    Made from the rows' first and last visible keys: torch's own ``create_block_mask`` looks at all rows x keys, which
    at 64k tokens are gigabytes. Rows ascend, and so do the begins of their sequences.
    """
    rows_R, device = rows.rows_R, rows.rows_R.device
    bounds = torch.tensor(rows.bounds, device=device)
    begin_R = bounds[torch.searchsorted(bounds, rows_R, right=True) - 1]
    first_B = torch.arange(0, len(rows_R), BLOCK, device=device)
    last_B = (first_B + BLOCK - 1).clamp(max=len(rows_R) - 1)
    block_J = torch.arange(-(-keys // BLOCK), device=device)
    seen_BJ = (block_J >= begin_R[first_B, None] // BLOCK) & (block_J <= rows_R[last_B, None] // BLOCK)
    # Whole for every row of the block: behind the last begin, before the first row; and no block that is not filled.
    inside_BJ = (block_J * BLOCK >= begin_R[last_B, None]) & ((block_J + 1) * BLOCK <= rows_R[first_B, None] + 1)
    whole_BJ = seen_BJ & inside_BJ & (last_B - first_B == BLOCK - 1)[:, None]
    part = _ordered(seen_BJ & ~whole_BJ)
    return BlockMask.from_kv_blocks(
        *part, *_ordered(whole_BJ), BLOCK_SIZE=BLOCK, mask_mod=mask_mod(rows), seq_lengths=(len(rows_R), keys)
    )


def _ordered(chosen_BJ: Tensor) -> tuple[Tensor, Tensor]:
    """How many key blocks are chosen for each block of rows, and their numbers, the chosen ones first."""
    order_BJ = torch.argsort(chosen_BJ.int(), dim=1, descending=True, stable=True)
    return chosen_BJ.sum(1, dtype=torch.int32)[None, None], order_BJ.int()[None, None]


@cache
def _compiled() -> Any:
    return torch.compile(flex_attention)
