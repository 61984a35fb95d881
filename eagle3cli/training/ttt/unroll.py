"""The training-time unroll: the draft applied to its own hidden states, depth after depth.

One packed batch goes through ``depths`` applications of the draft's layer. Knows which rows are alive from a RowPlan,
and nothing about losses, teachers or optimisers. The dense reference that it must equal is
``tests/training/ttt/dense.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from eagle3cli.models.draft import Draft, rotate
from eagle3cli.training.ttt.attention import Own, QueryRows, attend
from eagle3cli.training.ttt.positions import DepthRows, RowPlan

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
    seen_SKD: list[KeyValue]
    """Depth-0 keys and values of every layer, of all rows that some row can see."""


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
    hidden_RH, shared = _depth_zero(draft, token_ids_N, aux_NC, draft.embedding(embedding_VH), plan, attend)
    normed, own = list[Tensor](), [list[KeyValue]() for _ in draft.stack]
    for depth, rows in enumerate(plan.depths):
        if not len(rows.rows_R):
            normed.append(hidden_RH.new_zeros(0, draft.config.hidden_size))
            continue
        hidden_RH = hidden_RH[rows.within_R]
        own = [[(key[rows.within_R], value[rows.within_R]) for key, value in pairs] for pairs in own]
        if recompute and torch.is_grad_enabled():
            found = checkpoint(_one_depth, shared, depth, rows, hidden_RH, own, use_reentrant=False)
        else:
            found = _one_depth(shared, depth, rows, hidden_RH, own)
        head_RH, hidden_RH, newest = found
        own = [[*old, *new] for old, new in zip(own, newest, strict=True)]  # new lists: backward keeps the old ones
        normed.append(head_RH[rows.kept_r])
    return normed


def _depth_zero(
    draft: Draft, token_ids_N: Tensor, aux_NC: Tensor, embedding_VH: Tensor, plan: RowPlan, attend: Attend
) -> tuple[Tensor, _Shared]:
    """What the last layer reads at depth 0 in all rows that some row can see, and what the depths share.

    Layers before the last run over all those rows: each is a key of the next layer.
    """
    used = slice(0, plan.last_row + 1)
    attention = draft.midlayer.self_attn
    position_N = _positions(plan.bounds, token_ids_N.device)
    embedded_NH = draft.midlayer.input_layernorm(F.embedding(token_ids_N, embedding_VH).to(aux_NC.dtype))

    # What q, k and v owe to the newest token depends on its position alone: once per position, for all depths.
    weight_O2H = torch.cat((attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight))
    token_NO = draft.embedding_half(embedded_NH, weight_O2H)
    shared = _Shared(draft, attend, plan.bounds, position_N, weight_O2H, token_NO, [])

    hidden_SH = draft.first_hidden(aux_NC[used])
    q_width, last = attention.q_proj.out_features, len(draft.stack) - 1
    rows_S, at_S = torch.arange(plan.last_row + 1, device=token_ids_N.device), position_N[used]
    for index, layer in enumerate(draft.stack):
        normed_SH, skip = layer.hidden_norm(hidden_SH), slice(q_width if index == last else 0, None)
        joint_SO = _project(shared, index, normed_SH, token_NO[1 : plan.last_row + 2], skip)
        shared.seen_SKD.append(_key_value(draft, joint_SO if index == last else joint_SO[:, q_width:], at_S))
        if index == last:
            return hidden_SH, shared
        query_SND = rotate(_split(draft, joint_SO[:, :q_width]), *draft.rope(at_S, joint_SO.dtype))
        attended_SND = attend(query_SND, *shared.seen_SKD[index], [], QueryRows(rows_S, plan.bounds))
        hidden_SH = layer.finish(_residual(draft, index, hidden_SH, normed_SH), attended_SND)
    raise AssertionError("a draft has a layer")


def _one_depth(
    shared: _Shared, depth: int, rows: DepthRows, hidden_RH: Tensor, own: list[list[KeyValue]]
) -> tuple[Tensor, Tensor, list[list[KeyValue]]]:
    """The layers for the alive rows: what the head reads, what the next depth gets, and the rows' own new keys and
    values by layer (none at depth 0, where all rows share theirs, and where all layers but the last have run)."""
    draft, q_width = shared.draft, shared.draft.midlayer.self_attn.q_proj.out_features
    at_R, where = shared.position_N[rows.rows_R] + depth, QueryRows(rows.rows_R, shared.bounds)
    token_RO = shared.token_NO[rows.rows_R + 1 + depth]
    newest = [list[KeyValue]() for _ in draft.stack]
    for index, layer in enumerate(draft.stack):
        if depth == 0 and index < len(draft.stack) - 1:
            continue
        normed_RH = layer.hidden_norm(hidden_RH)
        joint_RO = _project(shared, index, normed_RH, token_RO, slice(0, q_width if depth == 0 else None))
        if depth:
            newest[index].append(_key_value(draft, joint_RO[:, q_width:], at_R))
        query_RND = rotate(_split(draft, joint_RO[:, :q_width]), *draft.rope(at_R, joint_RO.dtype))
        attended_RND = shared.attend(query_RND, *shared.seen_SKD[index], own[index] + newest[index], where)
        hidden_RH = layer.finish(_residual(draft, index, hidden_RH, normed_RH), attended_RND)
    head_RH, carried_RH = draft.head_and_carry(hidden_RH)
    return head_RH, carried_RH, newest


def _project(shared: _Shared, index: int, normed_XH: Tensor, token_XO: Tensor, part: slice) -> Tensor:
    """q, k and v of a layer side by side, or the ``part`` of their channels that is asked for."""
    if index == 0:
        return token_XO[:, part] + shared.draft.hidden_half(normed_XH, shared.weight_O2H[part])
    a = shared.draft.stack[index].self_attn
    return F.linear(normed_XH, torch.cat((a.q_proj.weight, a.k_proj.weight, a.v_proj.weight))[part])


def _residual(draft: Draft, index: int, hidden_RH: Tensor, normed_RH: Tensor) -> Tensor:
    return draft.residual(hidden_RH, normed_RH) if index == 0 else hidden_RH


def _positions(bounds: tuple[int, ...], device: torch.device) -> Tensor:
    """Position of every packed token inside its sequence."""
    spans = [torch.arange(end - begin, device=device) for begin, end in zip(bounds[:-1], bounds[1:], strict=True)]
    return torch.cat(spans)


def _split(draft: Draft, x_RO: Tensor) -> Tensor:
    split: Tensor = x_RO.unflatten(1, (-1, draft.config.head_dim))
    return split


def _key_value(draft: Draft, joint_RO: Tensor, at_R: Tensor) -> KeyValue:
    """Rotated keys and values ``[R, K, D]`` from the joint projection of both.

    Values are a copy: as a view they would keep the whole projection until the backward pass.
    """
    key_RO, value_RO = joint_RO.chunk(2, dim=1)
    return rotate(_split(draft, key_RO), *draft.rope(at_R, joint_RO.dtype)), _split(draft, value_RO.contiguous())
