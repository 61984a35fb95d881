"""Initial weights of latent attention (MLA): most heads read the newest token, some look back for it.

The latent of keys and values holds the token in the directions that matter most for the target's next state, each as
strong as any other, so that the norm behind it, which divides by their mean square, divides all tokens by about the
same; what it still changes is solved for in the output. Heads that attend to their own position compare random mixtures
of these directions. Behind them the latent has the code of the token that the states came from, the queries' latent
that of the newest one: what heads compare that look back (``training.initial.look_back``). All of it lies in channels
that do not turn with the position.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from eagle3cli.models.layers.latent import LatentAttention
from eagle3cli.models.layers.parts import RMSNorm
from eagle3cli.training.initial.solve import Whitening, ridge

SELF_SCORE = 40.0
"""Attention score of a row's own key at the start; other keys score near zero."""
CODE_CHANNELS = 64
"""Channels of a token's code at most: so many tell tokens apart."""
LOOKING_SHARE = 8
"""One head of so many looks back."""


@dataclass(frozen=True)
class Layout:
    """Where what lies in the latents: token first, then code."""

    token: int
    query_token: int
    """Channels of the token in the queries' latent."""
    code: int
    own_heads: int
    """Heads that read their own position; those behind them look back."""


def layout_of(attention: LatentAttention, *, looks_back: bool) -> Layout:
    """The layout of this attention's latents and heads."""
    latent = attention.latent
    heads = attention.o_proj.in_features // latent.v_head_dim
    code = code_channels(attention) if looks_back else 0
    own_heads = heads - (max(1, heads // LOOKING_SHARE) if looks_back else 0)
    token = min(latent.kv_lora_rank - code, own_heads * latent.v_head_dim, attention.o_proj.out_features)
    query_token = token if latent.q_lora_rank is None else min(token, latent.q_lora_rank - code)
    return Layout(token, query_token, code, own_heads)


def code_channels(attention: LatentAttention) -> int:
    """Channels of a code that leave most of the latents, and of the hidden state, to others; 0 where no head is to
    spare."""
    latent = attention.latent
    if attention.o_proj.in_features < 2 * latent.v_head_dim:
        return 0
    narrowest = min(latent.kv_lora_rank, latent.q_lora_rank or latent.kv_lora_rank, attention.o_proj.out_features)
    return min(CODE_CHANNELS, latent.qk_nope_head_dim, narrowest // 4)


@torch.no_grad()
def latent_to_own_row(
    attention: LatentAttention, token_HH: Tensor, token_RH: Tensor, *, looks_back: bool = False
) -> None:
    """Set all weights but those of heads that look back: the output for a row is about ``token_HH`` times its token
    ``[H]``, as far as the ranks allow. ``token_RH`` are the normed embeddings of a sample's rows."""
    for weight in attention.parameters():
        if weight.ndim == 2:
            weight.zero_()
    layout = layout_of(attention, looks_back=looks_back)
    code_XH = Whitening.of(token_RH).white_directions(token_HH, layout.token).to(token_RH.dtype)
    attention.kv_a_proj_with_mqa.weight[: layout.token, : token_RH.shape[1]] = code_XH
    read_RX = token_RH @ code_XH.T
    _set_norm(attention.kv_a_layernorm, read_RX, layout.code)
    read_RX = _normed(attention.kv_a_layernorm, read_RX, layout.code)
    _read_values(attention, slice(0, layout.own_heads), ridge(read_RX, token_RH @ token_HH.T))
    _score_own_row(attention, layout, code_XH, read_RX, token_RH)


@torch.no_grad()
def latent_looks_back(
    attention: LatentAttention,
    *,
    known_DH: Tensor,
    code_DH: Tensor,
    found_HH: Tensor,
    found_RH: Tensor,
    scores: tuple[float, ...],
) -> None:
    """Set the heads that look back, once the others are.

    ``known_DH`` reads the code of the token that the states came from out of the normed hidden state, ``code_DH`` that
    of a normed embedding; ``scores`` are those of a key that is looked for, by head in turn. The output is ``found_HH``
    times what a head finds, of which ``found_RH`` are samples.
    """
    layout = layout_of(attention, looks_back=True)
    latent = attention.latent
    hidden = known_DH.shape[1]
    token = slice(0, layout.token)
    code = slice(layout.token, layout.token + layout.code)
    attention.kv_a_proj_with_mqa.weight[code, hidden:] = known_DH
    read_RX = found_RH @ attention.kv_a_proj_with_mqa.weight[token, :hidden].T
    read_RX = _normed(attention.kv_a_layernorm, read_RX, layout.code)
    heads = _heads(attention)
    _read_values(attention, slice(layout.own_heads, len(heads)), ridge(read_RX, found_RH @ found_HH.T))
    asked = slice(layout.query_token, layout.query_token + layout.code)
    if latent.q_lora_rank is not None:
        attention.q_a_proj.weight[asked, :hidden] = code_DH
    identity = torch.eye(layout.code, device=known_DH.device)
    for head in range(layout.own_heads, len(heads)):
        score = scores[head % len(scores)]
        size = (score / (layout.code * attention.score_factor * attention.head_dim**-0.5)) ** 0.5
        heads[head, : layout.code, code] = size * identity
        rows = slice(head * latent.qk_head_dim, head * latent.qk_head_dim + layout.code)
        if latent.q_lora_rank is not None:
            attention.q_b_proj.weight[rows, asked] = size * identity
        else:
            attention.q_proj.weight[rows, :hidden] = size * code_DH


def _set_norm(norm: RMSNorm, read_RX: Tensor, code: int) -> None:
    """The weight with which a latent stays as it is where rows are alike; a code has a mean square of one."""
    norm.weight.fill_(float(((read_RX.pow(2).sum(-1) + code) / len(norm.weight)).sqrt().mean()))


def _normed(norm: RMSNorm, read_RX: Tensor, code: int) -> Tensor:
    """The token's channels behind the norm of their latent, beside a code and channels without use."""
    beside = read_RX.new_zeros(len(read_RX), len(norm.weight) - read_RX.shape[1])
    beside[:, :code] = 1
    normed: Tensor = norm(torch.cat((read_RX, beside), 1))[:, : read_RX.shape[1]]
    return normed


def _read_values(attention: LatentAttention, chosen: slice, output_HX: Tensor) -> None:
    """Deal the token's channels out over these heads' values, as often as they fit; each copy gives its part."""
    latent = attention.latent
    size = latent.v_head_dim
    slots = torch.arange(chosen.start * size, chosen.stop * size, device=output_HX.device)
    rank = output_HX.shape[1]
    channel_of = torch.arange(len(slots), device=output_HX.device) % rank
    copies_X = torch.bincount(channel_of, minlength=rank).clamp(min=1)
    attention.o_proj.weight[:, slots] = (output_HX / copies_X)[:, channel_of]
    values = _heads(attention)[chosen, latent.qk_nope_head_dim :]
    values[:, :, :rank] = torch.eye(rank, device=output_HX.device)[channel_of].unflatten(0, (-1, size))


def _heads(attention: LatentAttention) -> Tensor:
    """What the heads' keys and values are made of the latent by, ``[A, nope + v, latent]``: a view."""
    latent = attention.latent
    heads: Tensor = attention.kv_b_proj.weight.unflatten(0, (-1, latent.qk_nope_head_dim + latent.v_head_dim))
    return heads


def _score_own_row(
    attention: LatentAttention, layout: Layout, code_XH: Tensor, key_RX: Tensor, token_RH: Tensor
) -> None:
    """Query and key of a head are the same random mixture of the token's channels."""
    latent = attention.latent
    rank = layout.query_token
    hidden = token_RH.shape[1]
    query_RX = token_RH @ code_XH[:rank].T
    if latent.q_lora_rank is not None:
        attention.q_a_proj.weight[:rank, :hidden] = code_XH[:rank]
        _set_norm(attention.q_a_layernorm, query_RX, layout.code)
        query_RX = _normed(attention.q_a_layernorm, query_RX, layout.code)
    generator = torch.Generator().manual_seed(0)
    mixed = min(latent.qk_nope_head_dim, rank)
    keys = _heads(attention)
    factor = attention.score_factor * attention.head_dim**-0.5
    for head in range(layout.own_heads):
        random = torch.randn(rank, mixed, generator=generator, dtype=torch.double)
        mix_DX = torch.linalg.qr(random)[0].T.to(key_RX)
        own = ((query_RX @ mix_DX.T) * (key_RX[:, :rank] @ mix_DX.T)).sum(1).mean()
        mix_DX = mix_DX * (SELF_SCORE / (factor * own)) ** 0.5
        keys[head, :mixed, :rank] = mix_DX
        rows = slice(head * latent.qk_head_dim, head * latent.qk_head_dim + mixed)
        if latent.q_lora_rank is not None:
            attention.q_b_proj.weight[rows, :rank] = mix_DX
        else:
            attention.q_proj.weight[rows, :hidden] = mix_DX @ code_XH[:rank]
