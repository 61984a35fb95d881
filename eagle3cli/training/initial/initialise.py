"""Initial weights solved from the target's own states, so that training starts from a draft that already agrees.

Rows of a sample give, for each position p of a reply, the auxiliary states at p, the embedding of ``x_{p+1}``, and the
target's last hidden state at p+1, which is what the draft should produce. In closed form:

1. the heads of one key/value group look back (``training.initial.look_back``): they read what followed the newest
   token when it stood earlier in the sequence, as an induction head does;
2. ridge regression from [aux ; embedding ; what was found back there] to that state: the aux part becomes ``fc``;
3. the embedding part, of limited rank, goes through v and o of the other heads, whose q and k make a row attend to
   itself (a fresh attention would average the newest token over all keys), and so do the looking heads' findings
   (the same through the latents of latent attention: ``training.initial.latent``);
4. the MLP keeps the target's last-layer gate and up projections, and ``down`` is the ridge solution for what is left;
5. the draft's head is the target's head restricted to the draft vocabulary, and its norm the target's final norm;
6. the norm is scaled so that the draft is as sure of its tokens as it should be: a regression's outputs are too short,
   the norm stretches them to full length, and training would spend its first steps on that alone.

Knows nothing about files or settings.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from eagle3cli.backends.target.logits import Head
from eagle3cli.models.draft import Draft
from eagle3cli.models.layers.latent import LatentAttention
from eagle3cli.models.layers.parts import Attention
from eagle3cli.training.initial.latent import SELF_SCORE, latent_to_own_row
from eagle3cli.training.initial.look_back import SHRINK, look_back
from eagle3cli.training.initial.sample import Sample
from eagle3cli.training.initial.solve import Whitening, ridge
from eagle3cli.training.ttt.attention import QueryPositions, attend

TARGET_RMS_FLOOR = 1e-3
CALIBRATION_ROWS = 1024
CALIBRATION_GRID = tuple(0.1 * n for n in range(1, 16))
"""Factors of the final norm that are tried."""


def channel_rms(aux_RC: Tensor) -> Tensor:
    """Root mean square of every auxiliary channel over the sample, ``[C]``, kept away from zero."""
    rms = aux_RC.pow(2).mean(0).sqrt()
    return rms.clamp(min=TARGET_RMS_FLOOR * float(rms.mean()))


@torch.no_grad()
def initialise(
    draft: Draft,
    sample: Sample,
    *,
    embedding_VH: Tensor,
    head: Head,
    final_norm_H: Tensor,
    last_layer_mlp: dict[str, Tensor],
) -> None:
    """Set all of the draft's weights. ``last_layer_mlp`` holds the target's last ``gate_proj``/``up_proj`` and norm
    weights; what is missing or of another shape keeps its random values."""
    _pass_through(draft)
    aux_RC = draft.fc_input(sample.aux_RC)
    draft.set_aux_scale(channel_rms(aux_RC).to(draft.aux_scale_C))
    draft.lm_head.weight.copy_(head.weight_VH[draft.draft_ids])
    draft.norm.weight.copy_(final_norm_H)
    aux_RC = aux_RC / draft.aux_scale_C
    token_NH = draft.midlayer.input_layernorm(embedding_VH[sample.token_N].float())
    token_RH = token_NH[sample.position_R + 1]
    fitted, unseen = _split(len(aux_RC))
    looking = look_back(draft, sample, token_NH)
    read_RX = torch.cat((aux_RC, token_RH) if looking is None else (aux_RC, token_RH, looking.found_RH), 1)
    hidden = draft.config.hidden_size
    solved_HX = ridge(read_RX[fitted], sample.last_RH[fitted])
    aux_HC, token_HH, found_HH = solved_HX.tensor_split((aux_RC.shape[1], aux_RC.shape[1] + hidden), 1)
    draft.fc.weight.copy_(aux_HC)
    attention = draft.midlayer.self_attn
    if isinstance(attention, LatentAttention):
        latent_to_own_row(attention, token_HH, token_RH[fitted], looks_back=looking is not None)
    else:
        _attend_to_own_row(attention, token_HH, token_RH[fitted], looks_back=looking is not None)
    if looking is not None:
        looking.put(draft, found_HH, float((aux_RC @ aux_HC.T).pow(2).mean().sqrt()))
    del read_RX, aux_RC
    residual_RH = _residual(draft, sample, token_NH)
    _fit_mlp(draft, residual_RH[fitted], sample.last_RH[fitted], last_layer_mlp)
    teach = head.rows(draft.draft_ids).to(torch.float32)
    teacher_RV = F.softmax(teach(sample.last_RH[unseen] * final_norm_H.float()), -1)
    _calibrate(draft, residual_RH[unseen], teacher_RV)


def _pass_through(draft: Draft) -> None:
    """Layers after the first start as the identity: what follows is solved for the first one alone."""
    for layer in draft.stack[1:]:
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()


def _split(rows: int) -> tuple[slice, slice]:
    """Rows to fit and rows to calibrate on; the same ones where there are too few."""
    held_out = min(CALIBRATION_ROWS, rows // 4)
    return (slice(0, rows - held_out), slice(rows - held_out, rows)) if held_out else (slice(0, rows), slice(0, rows))


def _residual(draft: Draft, sample: Sample, token_NH: Tensor) -> Tensor:
    """``h^0 + W_o att`` of the rows, ``[R, H]``, as the first layer computes it."""
    layer = draft.midlayer
    residual_NH = torch.empty_like(token_NH)
    for begin, end in pairwise(sample.cu_seqlens):
        hidden_SH = draft.first_hidden(sample.aux_NC[begin:end].float())
        following_SH = F.pad(token_NH[begin + 1 : end], (0, 0, 0, 1))
        position_S = torch.arange(end - begin, device=hidden_SH.device)
        rope = draft.rope(position_S, hidden_SH.dtype)
        read_SX = torch.cat((following_SH, layer.hidden_norm(hidden_SH)), 1)
        queries = QueryPositions(position_S, (0, end - begin), window=draft.config.sliding)
        attended_SAD = attend(*layer.self_attn.qkv(read_SX, rope), [], queries)
        residual_NH[begin:end] = hidden_SH + layer.self_attn.output(attended_SAD)
    return residual_NH[sample.position_R]


def _attend_to_own_row(attention: Attention, token_HH: Tensor, token_RH: Tensor, *, looks_back: bool) -> None:
    """v and o of the key/value groups (but for the last where it looks back) carry the best low-rank part of
    ``token_HH``; q = k = a whitened projection of the token, so that a row scores its own key high and others low (rows
    with the same token carry the same value, so they may share). The heads of the group left out give nothing."""
    dim = attention.head_dim
    hidden = token_RH.shape[1]
    kv_heads = attention.k_proj.out_features // dim
    groups = kv_heads - looks_back
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
        projection.weight.zero_()
    whitening = Whitening.of(token_RH)
    alike = Whitening.of(token_RH, shrink=SHRINK)
    value_RX, output_HR = whitening.low_rank(token_HH, min(groups * dim, hidden))
    # Singular directions are dealt out over the groups, so that each carries strong and weak ones.
    rank = len(value_RX)
    order = torch.arange(rank).reshape(-1, groups).T.flatten() if rank % groups == 0 else torch.arange(rank)
    attention.v_proj.weight[:rank, :hidden] = value_RX[order].to(attention.v_proj.weight.dtype)
    share = attention.q_proj.out_features // attention.k_proj.out_features
    columns = torch.zeros(hidden, groups * dim, dtype=torch.double, device=output_HR.device)
    columns[:, :rank] = output_HR[:, order] / share
    per_head = columns.unflatten(1, (groups, dim)).repeat_interleave(share, 1).flatten(1)
    attention.o_proj.weight[:, : per_head.shape[1]] = per_head.to(attention.o_proj.weight.dtype)

    generator = torch.Generator().manual_seed(0)
    for g in range(groups):
        random = torch.randn(dim, hidden, generator=generator, dtype=torch.double).to(output_HR.device)
        basis = torch.linalg.qr(random.T)[0].T
        project = basis @ alike.inverse_root_HH
        project *= (SELF_SCORE * dim**0.5 / (token_RH.double() @ project.T).pow(2).sum(1).mean()) ** 0.5
        width = len(project)  # less than a head's where that is wider than a token's embedding
        attention.k_proj.weight[g * dim : g * dim + width, :hidden] = project.to(attention.k_proj.weight.dtype)
        for n in range(g * share, (g + 1) * share):
            attention.q_proj.weight[n * dim : n * dim + width, :hidden] = project.to(attention.q_proj.weight.dtype)


def _fit_mlp(draft: Draft, residual_RH: Tensor, last_RH: Tensor, last_layer_mlp: dict[str, Tensor]) -> None:
    mlp = draft.midlayer.mlp
    norm = draft.midlayer.post_attention_layernorm
    for name, weight in (("gate_proj", mlp.gate_proj.weight), ("up_proj", mlp.up_proj.weight), ("norm", norm.weight)):
        if name in last_layer_mlp and last_layer_mlp[name].shape == weight.shape:
            weight.copy_(last_layer_mlp[name])
    normed = norm(residual_RH)
    features = F.silu(mlp.gate_proj(normed)) * mlp.up_proj(normed)
    mlp.down_proj.weight.copy_(ridge(features, last_RH - residual_RH))


def _calibrate(draft: Draft, residual_RH: Tensor, teacher_RV: Tensor) -> None:
    """Scale the final norm by the factor of the grid with the lowest cross-entropy against the target."""
    layer = draft.midlayer
    hidden_RH = residual_RH + layer.mlp(layer.post_attention_layernorm(residual_RH))
    logits_RV = draft.lm_head(draft.norm(hidden_RH)).float()
    losses = [float(F.cross_entropy(logits_RV * factor, teacher_RV)) for factor in CALIBRATION_GRID]
    draft.norm.weight.mul_(CALIBRATION_GRID[losses.index(min(losses))])
