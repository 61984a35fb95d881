"""The unroll and its loss written as plainly as possible: every row, every depth, full score matrices, full logits."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from eagle3cli.models.config import DraftConfig
from eagle3cli.models.draft import AnyAttention, Draft
from eagle3cli.models.layers.parts import Attention, rotate
from eagle3cli.training.ttt.loss import LossWeights

MSCALES = (("mscale", 1.0), ("mscale_all_dim", 0.0))
"""Of DeepSeek's YaRN: what rotations are multiplied by, over what scores are divided by."""


@dataclass
class Dense:
    """What one sequence gave: the weighted loss sum (not normalised) and sums per depth."""

    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    losses: list[float] = field(default_factory=list)
    right: list[int] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)


def serving_counts(mask: Tensor, p: int, i: int) -> bool:
    """Row p at depth i counts when the tokens p+1 .. p+2+i were all written by the target."""
    return p + 2 + i < len(mask) and all(bool(mask[t]) for t in range(p + 1, p + 3 + i))


def rms(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)


def dense_first_hidden(draft: Draft, aux_SC: Tensor) -> Tensor:
    if draft.input_norm is not None:
        aux_SC = rms(aux_SC, draft.input_norm.weight, draft.config.rms_norm_eps)
    if draft.fc_norm is not None:
        thirds = aux_SC.split(draft.config.target_hidden_size, dim=1)
        norms = [norm.weight for norm in draft.fc_norm]
        aux_SC = torch.cat([rms(x, w, draft.config.rms_norm_eps) for x, w in zip(thirds, norms, strict=True)], 1)
    return (aux_SC / draft.aux_scale_C) @ draft.fc.weight.T


def dense_loss(
    draft: Draft,
    ids_S: Tensor,
    mask_S: Tensor,
    aux_SC: Tensor,
    last_SH: Tensor,
    top_S: Tensor,
    embedding: Tensor,
    head: Tensor,
    terms: LossWeights,
    anchors_S: Tensor | None = None,
) -> Dense:
    size = len(ids_S)
    if draft.embed_tokens is not None:
        embedding = draft.embed_tokens.weight
    hidden = dense_first_hidden(draft, aux_SC)
    keys, values = [[] for _ in draft.stack], [[] for _ in draft.stack]
    found = Dense()
    for i in range(len(terms.cross_entropy_T)):
        token = torch.tensor([int(ids_S[p + 1 + i]) if p + 1 + i < size else 0 for p in range(size)])
        logits, hidden = dense_step(draft, token, hidden, i, embedding, keys, values)
        counted = [
            p
            for p in range(size)
            if serving_counts(mask_S, p, i)
            and draft.t2d[top_S[p + 1 + i]]
            and (anchors_S is None or bool(anchors_S[p]))
        ]
        _add_depth(found, draft, i, counted, logits, last_SH @ head.T, top_S, terms)
    return found


def dense_step(
    draft: Draft,
    token_S: Tensor,
    hidden_SH: Tensor,
    step: int,
    embedding: Tensor,
    keys: list[list[Tensor]],
    values: list[list[Tensor]],
) -> tuple[Tensor, Tensor]:
    """Logits of every row at one step, and the hidden states that the next one gets; the step's keys are added."""
    config = draft.config
    for at, layer in enumerate(draft.stack):
        residual = normed = rms(hidden_SH, layer.hidden_norm.weight, config.rms_norm_eps)
        if at == 0:
            normed = torch.cat((draft.midlayer.input_layernorm(F.embedding(token_S, embedding)), normed), -1)
        if at > 0 or not config.norm_before_residual:
            residual = hidden_SH
        hidden_SH = residual + _attended(draft, layer.self_attn, normed, step, keys[at], values[at])
        hidden_SH = hidden_SH + layer.mlp(layer.post_attention_layernorm(hidden_SH))
    normed = rms(hidden_SH, draft.norm.weight, config.rms_norm_eps)
    return draft.lm_head(normed), normed if config.norm_output else hidden_SH


def in_window(config: DraftConfig, query: int, key: int) -> bool:
    """Whether the query at one place of a text sees the key at another, at or before it."""
    return config.window is None or query - key < config.window or key < config.sinks


def dense_heads(
    c: DraftConfig, attention: AnyAttention, read: Tensor, positions: Tensor, draft: Draft
) -> tuple[Tensor, Tensor, Tensor, float]:
    """Queries, keys and values of every head, and the scale of their scores."""
    if isinstance(attention, Attention):
        cos, sin = draft.rope(positions, torch.float32)
        q = rotate(attention.q_proj(read).unflatten(1, (-1, c.head_dim)), cos, sin)
        k = rotate(attention.k_proj(read).unflatten(1, (-1, c.head_dim)), cos, sin)
        return q, k, attention.v_proj(read).unflatten(1, (-1, c.head_dim)), c.head_dim**-0.5
    return latent_heads(c, dict(attention.named_parameters()), read, positions)


def latent_heads(
    c: DraftConfig, weights: dict[str, Tensor], read: Tensor, positions: Tensor
) -> tuple[Tensor, Tensor, Tensor, float]:
    """The same of latent attention, from the formulas of DeepSeek-V2 (arXiv 2405.04434) and its YaRN, head by head."""
    sizes, eps = c.latent, c.rms_norm_eps
    assert sizes is not None
    nope, rope, heads = sizes.qk_nope_head_dim, sizes.qk_rope_head_dim, c.num_attention_heads
    frequency, turned_by, factor = yarn(c, rope)
    angle = positions[:, None].float() * frequency
    turn = torch.polar(torch.full_like(angle, turned_by), angle)  # neighbouring channels are one complex number

    def rotated(x: Tensor) -> Tensor:
        return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2)).clone()) * turn).flatten(-2)

    queries = read
    if sizes.q_lora_rank is not None:
        queries = rms(read @ weights["q_a_proj.weight"].T, weights["q_a_layernorm.weight"], eps)
    queries = queries @ weights["q_proj.weight" if sizes.q_lora_rank is None else "q_b_proj.weight"].T
    joint = read @ weights["kv_a_proj_with_mqa.weight"].T
    shared = rms(joint[:, : sizes.kv_lora_rank], weights["kv_a_layernorm.weight"], eps)
    turned = rotated(joint[:, sizes.kv_lora_rank :])
    q, k, v = [], [], []
    for head in range(heads):
        own = queries[:, head * (nope + rope) : (head + 1) * (nope + rope)]
        q.append(torch.cat((own[:, :nope], rotated(own[:, nope:])), 1))
        wide = weights["kv_b_proj.weight"][head * (nope + sizes.v_head_dim) : (head + 1) * (nope + sizes.v_head_dim)]
        k.append(torch.cat((shared @ wide[:nope].T, turned), 1))
        v.append(shared @ wide[nope:].T)
    return torch.stack(q, 1), torch.stack(k, 1), torch.stack(v, 1), (nope + rope) ** -0.5 * factor


def yarn(c: DraftConfig, size: int) -> tuple[Tensor, float, float]:
    """Frequencies of the pairs, the length of their rotation, and the factor of scores."""
    plain = torch.tensor([c.rope_theta ** (-2 * i / size) for i in range(size // 2)])
    raw = c.rope_scaling
    if raw is None:
        return plain, 1.0, 1.0

    def pair_that_turns(often: float) -> float:
        """The pair that turns so often over the original context."""
        context = raw["original_max_position_embeddings"]
        return size * math.log(context / (often * 2 * math.pi)) / (2 * math.log(c.rope_theta))

    low = max(math.floor(pair_that_turns(raw.get("beta_fast", 32))), 0)
    high = min(math.ceil(pair_that_turns(raw.get("beta_slow", 1))), size - 1)
    stretched = ((torch.arange(size // 2) - low) / max(high - low, 0.001)).clamp(0, 1)
    length, scores = (0.1 * raw.get(key, default) * math.log(raw["factor"]) + 1 for key, default in MSCALES)
    return plain * (1 - stretched) + plain / raw["factor"] * stretched, length / scores, scores**2


def _attended(
    draft: Draft, attention: AnyAttention, read: Tensor, depth: int, keys: list[Tensor], values: list[Tensor]
) -> Tensor:
    """Attention of every row over the depth-0 rows up to it and its own later ones; this depth's are added to both."""
    size, c = len(read), draft.config
    made = dense_heads(c, attention, read, torch.arange(size) + depth, draft)
    q, scale = made[0], made[3]
    keys.append(made[1])
    values.append(made[2])
    share = c.num_attention_heads // c.num_key_value_heads
    out = []
    for p in range(size):
        seen = [at for at in range(p + depth + 1) if in_window(c, p + depth, at)]  # a key stands where its RoPE puts it
        k, v = (
            torch.cat([states[0][: p + 1]] + [states[j][p : p + 1] for j in range(1, depth + 1)])[seen]
            for states in (keys, values)
        )
        k, v = k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)
        weights = torch.softmax(torch.einsum("nd,snd->ns", q[p], k) * scale, -1)
        out.append(torch.einsum("ns,snd->nd", weights, v))
    return attention.o_proj(torch.stack(out).flatten(1))


def _add_depth(
    found: Dense, draft: Draft, i: int, counted: list[int], logits: Tensor, target: Tensor, top: Tensor, t: LossWeights
) -> None:
    cross_entropy, rate_sum, log_rate = torch.zeros(()), torch.zeros(()), torch.zeros(())
    correct = 0
    for p in counted:
        z = target[p + 1 + i]
        teacher, whole = torch.softmax(z[draft.draft_ids], -1), torch.softmax(z, -1)[draft.draft_ids]
        rate = torch.minimum(whole, torch.softmax(logits[p], -1)).sum()
        cross_entropy = cross_entropy - (teacher * torch.log_softmax(logits[p], -1)).sum()
        rate_sum, log_rate = rate_sum + rate, log_rate + rate.log()
        correct += int(draft.draft_ids[logits[p].argmax()] == top[p + 1 + i])
    found.total = found.total + t.cross_entropy_T[i] * cross_entropy
    found.total = found.total + t.total_variation_T[i] * (len(counted) - rate_sum) - t.log_rate_T[i] * log_rate
    found.losses.append(float(cross_entropy.detach()))
    found.rates.append(float(rate_sum.detach()))
    found.right.append(correct)
