"""The training-time unroll: the draft applied to its own hidden states, depth after depth.

One packed batch goes through ``depths`` applications of the draft's layer. Knows which rows are alive from a RowPlan,
and nothing about losses, teachers or optimisers. The dense reference that it must equal is
``tests/training/dense.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from eagle3cli.models.draft import Draft, rotate
from eagle3cli.training.attention import attend, make_blocks
from eagle3cli.training.rows import RowPlan


def unroll(draft: Draft, token_ids_N: Tensor, aux_NC: Tensor, embedding_VH: Tensor, plan: RowPlan) -> list[Tensor]:
    """Normed hidden states of the kept rows of every depth, each ``[r, H]``, ready for the draft's head.

    ``h^0 = fc(aux)``; at depth i row p reads token ``x_{p+1+i}``, attends to the depth-0 keys of its sequence up to p
    and to its own keys of depths 1..i at RoPE position p+i, and passes ``h^{i+1}`` on without the final norm.
    """
    used = slice(0, plan.last_row + 1)
    attention = draft.midlayer.self_attn
    position_N = _positions(plan.bounds, token_ids_N.device)
    embedded_NH = draft.midlayer.input_layernorm(F.embedding(token_ids_N, embedding_VH).to(aux_NC.dtype))

    # What q, k and v owe to the newest token depends on its position alone: once per position, for all depths.
    weight_O2H = torch.cat((attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight))
    token_NO = draft.embedding_half(embedded_NH, weight_O2H)
    q_width, kv_width = attention.q_proj.out_features, attention.k_proj.out_features

    hidden_SH = draft.first_hidden(aux_NC[used])
    normed_SH = draft.midlayer.hidden_norm(hidden_SH)
    keys_SKD, values_SKD = _key_value(
        draft,
        token_NO[1 : plan.last_row + 2, q_width:] + draft.hidden_half(normed_SH, weight_O2H[q_width:]),
        position_N[used],
    )

    normed, own = [], list[tuple[Tensor, Tensor]]()
    hidden_RH, normed_RH = hidden_SH, normed_SH
    for depth, rows in enumerate(plan.depths):
        if not len(rows.rows_R):
            normed.append(hidden_SH.new_zeros(0, draft.config.hidden_size))
            continue
        at_R, token_R = position_N[rows.rows_R] + depth, rows.rows_R + 1 + depth
        hidden_RH, normed_RH = hidden_RH[rows.within_R], normed_RH[rows.within_R]
        if depth == 0:
            query_RO = token_NO[token_R, :q_width] + draft.hidden_half(normed_RH, weight_O2H[:q_width])
        else:
            own = [(key[rows.within_R], value[rows.within_R]) for key, value in own]
            joint_RO = token_NO[token_R] + draft.hidden_half(normed_RH, weight_O2H)
            query_RO = joint_RO[:, :q_width]
            own.append(_key_value(draft, joint_RO[:, q_width : q_width + 2 * kv_width], at_R))
        query_RND = rotate(_split(draft, query_RO), *draft.rope(at_R, query_RO.dtype))
        blocks = make_blocks(rows.rows_R, plan.bounds, query_RO.dtype)
        attended_RND = attend(query_RND, keys_SKD, values_SKD, own, blocks)
        hidden_RH = draft.finish_layer(hidden_RH, attended_RND)
        normed_RH = draft.midlayer.hidden_norm(hidden_RH)
        normed.append(draft.norm(hidden_RH[rows.kept_r]))
    return normed


def _positions(bounds: tuple[int, ...], device: torch.device) -> Tensor:
    """Position of every packed token inside its sequence."""
    spans = [torch.arange(end - begin, device=device) for begin, end in zip(bounds[:-1], bounds[1:], strict=True)]
    return torch.cat(spans)


def _split(draft: Draft, x_RO: Tensor) -> Tensor:
    split: Tensor = x_RO.unflatten(1, (-1, draft.config.head_dim))
    return split


def _key_value(draft: Draft, joint_RO: Tensor, at_R: Tensor) -> tuple[Tensor, Tensor]:
    """Rotated keys and values ``[R, K, D]`` from the joint projection of both."""
    key_RO, value_RO = joint_RO.chunk(2, dim=1)
    return rotate(_split(draft, key_RO), *draft.rope(at_R, joint_RO.dtype)), _split(draft, value_RO)
