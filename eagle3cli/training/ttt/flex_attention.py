"""Attention of one step of the unroll through ``flex_attention``: the choice on CUDA, where it is compiled.

The step-0 part, packed sequences and pruned positions included, is one call with a block mask that returns its
log-sum-exp; the queries' own keys are merged by plain autograd, which flows through the log-sum-exp too. On a CPU
flex_attention has a forward pass only, which the tests hold against :func:`eagle3cli.training.ttt.attention.attend`.

One compiled graph serves all lengths: queries and keys are padded to whole blocks, at least two, since the compiler
makes a graph of its own for lengths that are no multiple of a block, and for sizes of one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import flex_attention as flex
from torch.nn.attention.flex_attention import BlockMask, flex_attention

from eagle3cli.training.ttt.attention import DraftKV, QueryPositions, attend, merge_draft_kv, nothing_seen
from eagle3cli.training.ttt.unroll import Attend

AuxRequest: Any = getattr(flex, "AuxRequest", None)
"""How torch 2.9 and newer are asked for the log-sum-exp; torch 2.8 takes ``return_lse``."""

BLOCK = 128
"""Queries, and keys, of a block of the kernel."""

MAX_GRAPHS = 32
"""Compiled graphs at which a run ends: training and evaluation take two or three each."""

MaskMod = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def attention_for(name: str, device: torch.device) -> Attend:
    """The attention of a device, flex_attention on CUDA; ``sdpa`` names the portable one, which runs anywhere."""
    return attend_flex if device.type == "cuda" and name != "sdpa" else attend


def attend_flex(
    query_RAD: Tensor, key_SKD: Tensor, value_SKD: Tensor, draft_kv: DraftKV, queries: QueryPositions
) -> Tensor:
    """Attention output ``[R, A, D]``; the same contract as :func:`eagle3cli.training.ttt.attention.attend`."""
    draft_kv, hidden_JR = queries.own_keys(draft_kv)
    out_RAD, lse_RA = nothing_seen(query_RAD) if queries.blind else _seen(query_RAD, key_SKD, value_SKD, queries)
    if not draft_kv:
        return out_RAD
    # The kernel's log-sum-exp is differentiable, so merging outside of it gives the joint softmax's gradients.
    own = [states for pair in draft_kv for states in pair]
    return merge_draft_kv(query_RAD, out_RAD, lse_RA.float(), own, hidden_JR)[0]


def _seen(query_RAD: Tensor, key_SKD: Tensor, value_SKD: Tensor, queries: QueryPositions) -> tuple[Tensor, Tensor]:
    """Output ``[R, A, D]`` and log-sum-exp ``[R, A]`` over the step-0 keys that each query sees."""
    # Padded lengths: Dynamo makes a graph for a divisible size and one for any other, not one for each length.
    block_mask = make_block_mask(_whole_blocks(queries), _in_blocks(len(key_SKD)))
    query, key, value = (_padded(states).transpose(0, 1)[None] for states in (query_RAD, key_SKD, value_SKD))
    out, lse = _run(query, key, value, block_mask)
    size = len(query_RAD)
    return out[0].transpose(0, 1)[:size], lse[0].transpose(0, 1)[:size]


def _run(query: Tensor, key: Tensor, value: Tensor, block_mask: BlockMask) -> tuple[Tensor, Tensor]:
    """Output ``[1, A, R, D]`` and log-sum-exp ``[1, A, R]`` of queries and keys of whole blocks."""
    kernel = _kernel_on(query.device)
    grouped = key.shape[1] != query.shape[1]
    if AuxRequest is None:
        out, lse = kernel(query, key, value, block_mask=block_mask, enable_gqa=grouped, return_lse=True)
        return out, lse
    request = AuxRequest(lse=True)
    out, aux = kernel(query, key, value, block_mask=block_mask, enable_gqa=grouped, return_aux=request)
    return out, aux.lse


def _in_blocks(length: int) -> int:
    """The length up to which queries, or keys, are padded."""
    return max(2, -(-length // BLOCK)) * BLOCK


def _padded(states_RAD: Tensor) -> Tensor:
    """The states with zeros behind them: as keys nobody sees them, as queries nobody reads their output."""
    missing = _in_blocks(len(states_RAD)) - len(states_RAD)
    return F.pad(states_RAD, (0, 0, 0, 0, 0, missing)) if missing else states_RAD


def _whole_blocks(queries: QueryPositions) -> QueryPositions:
    """The queries with the last one repeated: one that saw no key would have no softmax."""
    missing = _in_blocks(len(queries.position_R)) - len(queries.position_R)
    position_R, begin_R = (torch.cat([x, x[-1:].expand(missing)]) for x in (queries.position_R, queries.begin_R))
    return replace(queries, position_R=position_R, host_R=None, given_begin_R=begin_R)


def mask_mod(queries: QueryPositions) -> MaskMod:
    """Whether query q may see step-0 key k: the keys of its own sequence up to its own position, or those of them that
    its window shows. Nothing but tensors, since a number would make a graph of its own for each step."""
    position_R = queries.position_R
    begin_R = queries.begin_R

    def visible(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (begin_R[q] <= k) & (k <= position_R[q])

    if queries.window is None:
        return visible
    first_R = _first_key(queries)
    sink_end_R = begin_R + queries.window.sinks

    def in_window(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return visible(batch, head, q, k) & ((first_R[q] <= k) | (k < sink_end_R[q]))

    return in_window


def _first_key(queries: QueryPositions) -> Tensor:
    """Packed position of the first step-0 key that each query sees, sinks apart; ascending, as the queries are."""
    if queries.reach is None:
        return queries.begin_R
    return torch.maximum(queries.begin_R, queries.position_R - queries.reach + 1)


def make_block_mask(queries: QueryPositions, keys: int) -> BlockMask:
    """Which blocks of keys each block of queries reads: whole, in part (:func:`mask_mod` says where) or not at all.

    Made from the queries' first and last visible keys: torch's own ``create_block_mask`` looks at all queries x keys,
    which at 64k tokens are gigabytes. Queries ascend, and so do the begins of their sequences.
    """
    position_R = queries.position_R
    device = position_R.device
    begin_R = queries.begin_R
    low_R = _first_key(queries)
    first_B = torch.arange(0, len(position_R), BLOCK, device=device)
    last_B = (first_B + BLOCK - 1).clamp(max=len(position_R) - 1)
    block_J = torch.arange(-(-keys // BLOCK), device=device)
    # Where a block of queries goes on to other sequences, these begin behind its first query: within this range.
    from_B = torch.minimum(low_R, position_R)[first_B, None]
    seen_BJ = (block_J >= from_B // BLOCK) & (block_J <= position_R[last_B, None] // BLOCK)
    # Whole for every query of the block: behind the last begin, before the first query; and no block that is not full.
    inside_BJ = (block_J * BLOCK >= low_R[last_B, None]) & ((block_J + 1) * BLOCK <= position_R[first_B, None] + 1)
    whole_BJ = seen_BJ & inside_BJ & (last_B - first_B == BLOCK - 1)[:, None]
    if queries.window is not None and queries.window.sinks:
        sink_end_B = torch.minimum(begin_R[first_B] + queries.window.sinks, position_R[last_B] + 1)
        seen_BJ |= (block_J >= begin_R[first_B, None] // BLOCK) & (block_J * BLOCK < sink_end_B[:, None])
    return BlockMask.from_kv_blocks(
        *_ordered(seen_BJ & ~whole_BJ),
        *_ordered(whole_BJ),
        BLOCK_SIZE=BLOCK,
        mask_mod=mask_mod(queries),
        seq_lengths=(len(position_R), keys),
    )


def _ordered(chosen_BJ: Tensor) -> tuple[Tensor, Tensor]:
    """How many key blocks are chosen for each block of queries, and their numbers, the chosen ones first."""
    order_BJ = torch.argsort(chosen_BJ.int(), dim=1, descending=True, stable=True)
    return chosen_BJ.sum(1, dtype=torch.int32)[None, None], order_BJ.int()[None, None]


def _kernel_on(device: torch.device) -> Any:
    """The kernel of a device; a CPU's is torch's slow one, for the tests."""
    return _compiled() if device.type == "cuda" else flex_attention


@cache
def _compiled() -> Any:
    """The compiled kernel: one graph for all lengths, and an error rather than scores in full past the limit."""
    compiled: Any = torch.compile(flex_attention, dynamic=True, fullgraph=True)

    def run(*states: Tensor, **options: Any) -> Any:
        with torch._dynamo.config.patch(recompile_limit=MAX_GRAPHS):
            return compiled(*states, **options)

    return run
