"""The unroll and its loss written as plainly as possible: every row, every depth, full score matrices, full logits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from eagle3cli.models.draft import Draft, rotate


def serving_counts(mask: Tensor, p: int, i: int) -> bool:
    """Row p at depth i counts when the tokens p+1 .. p+2+i were all written by the target."""
    return p + 2 + i < len(mask) and all(bool(mask[t]) for t in range(p + 1, p + 3 + i))


def dense_loss(
    draft: Draft,
    ids_S: Tensor,
    mask_S: Tensor,
    aux_SC: Tensor,
    last_SH: Tensor,
    top_S: Tensor,
    embedding: Tensor,
    head: Tensor,
    depths: int,
    decay: float,
) -> tuple[Tensor, list[float], list[int]]:
    """Weighted loss sum of one sequence (not normalised), per-depth loss sums and right answers."""
    size, layer, c = len(ids_S), draft.midlayer, draft.config
    attention = layer.self_attn
    hidden = draft.first_hidden(aux_SC)
    keys, values = [], []
    total, losses, right = torch.zeros(()), [], []
    for i in range(depths):
        token = torch.tensor([int(ids_S[p + 1 + i]) if p + 1 + i < size else 0 for p in range(size)])
        joint = torch.cat((layer.input_layernorm(F.embedding(token, embedding)), layer.hidden_norm(hidden)), -1)
        cos, sin = draft.rope(torch.arange(size) + i, torch.float32)
        q = rotate(attention.q_proj(joint).unflatten(1, (-1, c.head_dim)), cos, sin)
        keys.append(rotate(attention.k_proj(joint).unflatten(1, (-1, c.head_dim)), cos, sin))
        values.append(attention.v_proj(joint).unflatten(1, (-1, c.head_dim)))
        share = c.num_attention_heads // c.num_key_value_heads
        out = []
        for p in range(size):
            k = torch.cat([keys[0][: p + 1]] + [keys[j][p : p + 1] for j in range(1, i + 1)]).repeat_interleave(
                share, 1
            )
            v = torch.cat([values[0][: p + 1]] + [values[j][p : p + 1] for j in range(1, i + 1)]).repeat_interleave(
                share, 1
            )
            weights = torch.softmax(torch.einsum("nd,snd->ns", q[p], k) * c.head_dim**-0.5, -1)
            out.append(torch.einsum("ns,snd->nd", weights, v))
        hidden = draft.finish_layer(hidden, torch.stack(out))
        logits = draft.lm_head(draft.norm(hidden))
        loss, correct = torch.zeros(()), 0
        for p in range(size):
            if serving_counts(mask_S, p, i) and draft.t2d[top_S[p + 1 + i]]:
                teacher = torch.softmax(last_SH[p + 1 + i] @ head[draft.draft_ids].T, -1)
                loss = loss - (teacher * torch.log_softmax(logits[p], -1)).sum()
                correct += int(draft.draft_ids[logits[p].argmax()] == top_S[p + 1 + i])
        total = total + decay**i * loss
        losses.append(float(loss))
        right.append(correct)
    return total, losses, right
