"""The training-time unroll: the draft applied to its own hidden states, depth after depth.

One packed batch goes through ``depths`` applications of the draft's layer. Knows which rows are alive from a RowPlan,
and nothing about losses, teachers or optimisers. The dense reference that it must equal is
``tests/training/dense.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from eagle3cli.models.draft import Draft, rotate
from eagle3cli.training.attention import Own, QueryRows, attend
from eagle3cli.training.rows import DepthRows, RowPlan

Attend = Callable[[Tensor, Tensor, Tensor, Own, QueryRows], Tensor]
KeyValue = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class _Shared:
    """What every depth reads."""

    draft: Draft
    attend: Attend
    bounds: tuple[int, ...]
    position_N: Tensor
    """Position of every packed token inside its sequence."""
    weight_O2H: Tensor
    """Rows of q, k and v, side by side."""
    token_NO: Tensor
    """What q, k and v owe to the token at each packed position."""
    keys_SKD: Tensor
    values_SKD: Tensor
    """Depth-0 keys and values, of all rows that some row can see."""


def unroll(
    draft: Draft,
    token_ids_N: Tensor,
    aux_NC: Tensor,
    embedding_VH: Tensor,
    plan: RowPlan,
    *,
    attend: Attend = attend,
    recompute: bool = False,
) -> list[Tensor]:
    """Normed hidden states of the kept rows of every depth, each ``[r, H]``, ready for the draft's head.

    ``h^0 = fc(aux)``; at depth i row p reads token ``x_{p+1+i}``, attends to the depth-0 keys of its sequence up to p
    and to its own keys of depths 1..i at RoPE position p+i, and passes ``h^{i+1}`` on without the final norm (with
    it, where the config says ``norm_output``). ``recompute`` keeps no activations inside a depth and makes them again
    in the backward pass.
    """
    hidden_RH, shared = _depth_zero_keys(draft, token_ids_N, aux_NC, embedding_VH, plan, attend)
    normed, own = [], list[KeyValue]()
    for depth, rows in enumerate(plan.depths):
        if not len(rows.rows_R):
            normed.append(hidden_RH.new_zeros(0, draft.config.hidden_size))
            continue
        hidden_RH = hidden_RH[rows.within_R]
        own = [(key[rows.within_R], value[rows.within_R]) for key, value in own]
        if recompute and torch.is_grad_enabled():
            found = checkpoint(_one_depth, shared, depth, rows, hidden_RH, own, use_reentrant=False)
        else:
            found = _one_depth(shared, depth, rows, hidden_RH, own)
        head_RH, hidden_RH, newest = found
        own = [*own, *newest]  # a new list: the old one is kept for the backward pass
        normed.append(head_RH[rows.kept_r])
    return normed


def _depth_zero_keys(
    draft: Draft, token_ids_N: Tensor, aux_NC: Tensor, embedding_VH: Tensor, plan: RowPlan, attend: Attend
) -> tuple[Tensor, _Shared]:
    """``h^0`` of all rows that some row can see, and what the depths share."""
    used = slice(0, plan.last_row + 1)
    attention = draft.midlayer.self_attn
    position_N = _positions(plan.bounds, token_ids_N.device)
    embedded_NH = draft.midlayer.input_layernorm(F.embedding(token_ids_N, embedding_VH).to(aux_NC.dtype))

    # What q, k and v owe to the newest token depends on its position alone: once per position, for all depths.
    weight_O2H = torch.cat((attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight))
    token_NO = draft.embedding_half(embedded_NH, weight_O2H)
    q_width = attention.q_proj.out_features

    hidden_SH = draft.first_hidden(aux_NC[used])
    own_half_SO = draft.hidden_half(draft.midlayer.hidden_norm(hidden_SH), weight_O2H[q_width:])
    keys, values = _key_value(draft, token_NO[1 : plan.last_row + 2, q_width:] + own_half_SO, position_N[used])
    return hidden_SH, _Shared(draft, attend, plan.bounds, position_N, weight_O2H, token_NO, keys, values)


def _one_depth(
    shared: _Shared, depth: int, rows: DepthRows, hidden_RH: Tensor, own: list[KeyValue]
) -> tuple[Tensor, Tensor, list[KeyValue]]:
    """One application of the layer to the alive rows: what the head reads, what the next depth gets, and the rows'
    own new key and value (none at depth 0, whose keys all rows share)."""
    draft, q_width = shared.draft, shared.draft.midlayer.self_attn.q_proj.out_features
    at_R = shared.position_N[rows.rows_R] + depth
    token_RO = shared.token_NO[rows.rows_R + 1 + depth]
    normed_RH = draft.midlayer.hidden_norm(hidden_RH)
    newest = list[KeyValue]()
    if depth == 0:
        query_RO = token_RO[:, :q_width] + draft.hidden_half(normed_RH, shared.weight_O2H[:q_width])
    else:
        joint_RO = token_RO + draft.hidden_half(normed_RH, shared.weight_O2H)
        query_RO = joint_RO[:, :q_width]
        newest.append(_key_value(draft, joint_RO[:, q_width:], at_R))
    query_RND = rotate(_split(draft, query_RO), *draft.rope(at_R, query_RO.dtype))
    where = QueryRows(rows.rows_R, shared.bounds)
    attended_RND = shared.attend(query_RND, shared.keys_SKD, shared.values_SKD, own + newest, where)
    head_RH, carried_RH = draft.head_and_carry(draft.finish_layer(hidden_RH, attended_RND))
    return head_RH, carried_RH, newest


def _positions(bounds: tuple[int, ...], device: torch.device) -> Tensor:
    """Position of every packed token inside its sequence."""
    spans = [torch.arange(end - begin, device=device) for begin, end in zip(bounds[:-1], bounds[1:], strict=True)]
    return torch.cat(spans)


def _split(draft: Draft, x_RO: Tensor) -> Tensor:
    split: Tensor = x_RO.unflatten(1, (-1, draft.config.head_dim))
    return split


def _key_value(draft: Draft, joint_RO: Tensor, at_R: Tensor) -> KeyValue:
    """Rotated keys and values ``[R, K, D]`` from the joint projection of both."""
    key_RO, value_RO = joint_RO.chunk(2, dim=1)
    return rotate(_split(draft, key_RO), *draft.rope(at_R, joint_RO.dtype)), _split(draft, value_RO)
