"""Initial weights solved from the target's own states, so that training starts from a draft that already agrees.

Rows of a sample give, for each position p of a reply, the auxiliary states at p, the embedding of ``x_{p+1}``, and the
target's last hidden state at p+1, which is what the draft should produce. In closed form:

1. ridge regression from [aux ; embedding] to that state: the aux part becomes ``fc``;
2. the embedding part, of limited rank, goes through v and o of heads whose q and k make a row attend to itself (a
   fresh attention would average the newest token over all keys);
3. the MLP keeps the target's last-layer gate and up projections, and ``down`` is the ridge solution for what is left;
4. the draft's head is the target's head restricted to the draft vocabulary, and its norm the target's final norm;
5. the norm is scaled so that the draft is as sure of its tokens as it should be: a regression's outputs are too short,
   the norm stretches them to full length, and training would spend its first steps on that alone.

Knows nothing about files or settings.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from eagle3cli.backends.batches.batch import TargetBatch
from eagle3cli.backends.target.logits import Head
from eagle3cli.models.draft import Draft

RIDGE = 1e-3
"""Ridge strength, relative to the mean of the Gram matrix's diagonal."""
SELF_SCORE = 40.0
"""Attention score of a row's own key at the start; other keys score near zero."""
TARGET_RMS_FLOOR = 1e-3
CALIBRATION_ROWS = 1024
CALIBRATION_GRID = tuple(0.1 * n for n in range(1, 16))
"""Factors of the final norm that are tried."""


@dataclass(frozen=True)
class Sample:
    """Aligned rows of the target's states, fp32: row r is some position p of a reply."""

    aux_RC: Tensor
    token_R: Tensor
    """``x_{p+1}``."""
    last_RH: Tensor
    """The target's last hidden state at p+1, before the final norm's weight."""


def gather_sample(batches: Iterable[TargetBatch], final_norm_H: Tensor, rows: int) -> Sample:
    """Collect up to ``rows`` rows from batches (stops reading once there are enough)."""
    aux: list[Tensor] = []
    tokens: list[Tensor] = []
    last: list[Tensor] = []
    count = 0
    for batch in batches:
        mask = batch.loss_mask_N
        next_has_loss = torch.cat((mask[1:], mask.new_zeros(1)))
        second_has_loss = torch.cat((mask[2:], mask.new_zeros(min(2, len(mask)))))[: len(mask)]
        at = (next_has_loss & second_has_loss).nonzero()[:, 0].to(batch.aux_NC.device)
        aux.append(batch.aux_NC[at].float())
        tokens.append(batch.token_ids_N[at + 1])
        last.append(batch.last_NH[at + 1].float() / final_norm_H.float())
        count += len(at)
        if count >= rows:
            break
    return Sample(torch.cat(aux)[:rows], torch.cat(tokens)[:rows], torch.cat(last)[:rows])


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
    read_RC = draft.fc_input(sample.aux_RC)
    draft.set_aux_scale(channel_rms(read_RC).to(draft.aux_scale_C))
    draft.lm_head.weight.copy_(head.weight_VH[draft.draft_ids])
    draft.norm.weight.copy_(final_norm_H)
    aux_RC = read_RC / draft.aux_scale_C
    token_RH = draft.midlayer.input_layernorm(embedding_VH[sample.token_R].float())
    fitted, unseen = _split(len(aux_RC))
    both = ridge(torch.cat((aux_RC[fitted], token_RH[fitted]), 1), sample.last_RH[fitted])
    draft.fc.weight.copy_(both[:, : aux_RC.shape[1]])
    _attend_to_own_row(draft, both[:, aux_RC.shape[1] :], token_RH[fitted])
    residual_RH = _residual(draft, aux_RC, token_RH)
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


def _residual(draft: Draft, aux_RC: Tensor, token_RH: Tensor) -> Tensor:
    """``h^0 + W_o att`` of rows that attend to themselves alone."""
    config = draft.config
    attention = draft.midlayer.self_attn
    value_RKD = (token_RH @ attention.v_proj.weight[:, : config.hidden_size].T).unflatten(1, (-1, config.head_dim))
    seen_RND = value_RKD.repeat_interleave(config.num_attention_heads // config.num_key_value_heads, 1)
    residual: Tensor = aux_RC @ draft.fc.weight.T + seen_RND.flatten(1) @ attention.o_proj.weight.T
    return residual


def ridge(x_RI: Tensor, y_RO: Tensor) -> Tensor:
    """``argmin_W |x W^T - y|^2 + ridge |W|^2``, ``[O, I]``, solved in fp64."""
    gram = (x_RI.T @ x_RI).double()
    gram.diagonal().add_(RIDGE * float(gram.diagonal().mean()))
    solved: Tensor = torch.linalg.solve(gram, (x_RI.T @ y_RO).double())
    return solved.T.to(x_RI.dtype)


def _attend_to_own_row(draft: Draft, token_HH: Tensor, token_RH: Tensor) -> None:
    """v and o carry the best low-rank part of ``token_HH``; q = k = a whitened projection of the token, so that a row
    scores its own key high and others low (rows with the same token carry the same value, so they may share)."""
    config = draft.config
    attention = draft.midlayer.self_attn
    groups = config.num_key_value_heads
    dim = config.head_dim
    hidden = config.hidden_size
    cov = token_RH.T @ token_RH / len(token_RH)
    values, vectors = torch.linalg.eigh(cov.double())
    values = values.clamp(min=float(values[-1]) * 1e-6)
    root = (vectors * values.sqrt()) @ vectors.T
    left, sizes, right = torch.linalg.svd(token_HH.double() @ root, full_matrices=False)
    rank = min(groups * dim, hidden)
    back = (vectors / values.sqrt()) @ vectors.T
    spread = sizes[:rank].sqrt()
    value_rows = (spread[:, None] * right[:rank]) @ back
    output_columns = left[:, :rank] * spread

    for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj):
        projection.weight.zero_()
    # Singular directions are dealt out over the groups, so that each carries strong and weak ones.
    order = torch.arange(rank).reshape(-1, groups).T.flatten() if rank % groups == 0 else torch.arange(rank)
    attention.v_proj.weight[:rank, :hidden] = value_rows[order].to(attention.v_proj.weight.dtype)
    share = config.num_attention_heads // groups
    columns = torch.zeros(hidden, groups * dim, dtype=torch.double, device=back.device)
    columns[:, :rank] = output_columns[:, order] / share
    per_head = columns.unflatten(1, (groups, dim)).repeat_interleave(share, 1).flatten(1)
    attention.o_proj.weight.copy_(per_head)

    generator = torch.Generator().manual_seed(0)
    for g in range(groups):
        random = torch.randn(dim, hidden, generator=generator, dtype=torch.double).to(back.device)
        basis = torch.linalg.qr(random.T)[0].T
        project = (basis * ((SELF_SCORE * dim**0.5) / dim) ** 0.5) @ back
        attention.k_proj.weight[g * dim : (g + 1) * dim, :hidden] = project.to(attention.k_proj.weight.dtype)
        for n in range(g * share, (g + 1) * share):
            attention.q_proj.weight[n * dim : (n + 1) * dim, :hidden] = project.to(attention.q_proj.weight.dtype)


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
