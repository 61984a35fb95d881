"""Initial weights of latent attention (MLA): every position attends to itself, and reads its newest token there.

The latent of keys and values holds the token in the directions that matter most for the target's next state, each as
strong as any other, so that the norm behind it, which divides by their mean square, divides all tokens by about the
same. What it still changes is solved for in the output. Heads compare random mixtures of these directions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from eagle3cli.models.layers.latent import LatentAttention
from eagle3cli.models.layers.parts import RMSNorm
from eagle3cli.training.initial.solve import Whitening, ridge

SELF_SCORE = 40.0
"""Attention score of a row's own key at the start; other keys score near zero."""


@torch.no_grad()
def latent_to_own_row(attention: LatentAttention, token_HH: Tensor, token_RH: Tensor) -> None:
    """Set all weights: the output for a row is about ``token_HH`` times its token ``[H]``, as far as the ranks allow.

    ``token_RH`` are the normed embeddings of a sample's rows.
    """
    for weight in attention.parameters():
        if weight.ndim == 2:
            weight.zero_()
    latent = attention.latent
    slots = attention.o_proj.in_features
    rank = min(latent.kv_lora_rank, slots, len(token_HH))
    code_XH = Whitening.of(token_RH).white_directions(token_HH, rank).to(token_RH.dtype)
    code_RX = _through_norm(token_RH @ code_XH.T, attention.kv_a_layernorm)
    attention.kv_a_proj_with_mqa.weight[:rank, : token_RH.shape[1]] = code_XH
    _read_values(attention, ridge(code_RX, token_RH @ token_HH.T))
    _score_own_row(attention, code_XH, code_RX, token_RH)


def _through_norm(code_RX: Tensor, norm: RMSNorm) -> Tensor:
    """The code behind the norm of its latent, whose weight is set so that it stays as it is where rows are alike."""
    norm.weight.fill_(float((code_RX.pow(2).sum(-1) / len(norm.weight)).sqrt().mean()))
    unused = code_RX.new_zeros(len(code_RX), len(norm.weight) - code_RX.shape[1])
    normed: Tensor = norm(torch.cat((code_RX, unused), 1))[:, : code_RX.shape[1]]
    return normed


def _read_values(attention: LatentAttention, output_HX: Tensor) -> None:
    """Deal the code's channels out over the heads' values, as often as they fit; each copy gives its part."""
    latent = attention.latent
    slots = attention.o_proj.in_features
    rank = output_HX.shape[1]
    channel_of = torch.arange(slots, device=output_HX.device) % rank
    copies_X = torch.bincount(channel_of, minlength=rank)
    attention.o_proj.weight.copy_((output_HX / copies_X)[:, channel_of])
    values = _heads(attention)[:, latent.qk_nope_head_dim :]
    values[:, :, :rank] = torch.eye(rank, device=output_HX.device)[channel_of].unflatten(0, (-1, latent.v_head_dim))


def _heads(attention: LatentAttention) -> Tensor:
    """What the heads' keys and values are made of the latent by, ``[A, nope + v, latent]``: a view."""
    latent = attention.latent
    heads: Tensor = attention.kv_b_proj.weight.unflatten(0, (-1, latent.qk_nope_head_dim + latent.v_head_dim))
    return heads


def _score_own_row(attention: LatentAttention, code_XH: Tensor, code_RX: Tensor, token_RH: Tensor) -> None:
    """Query and key of a head are the same random mixture of the code; the channels that turn stay out of it."""
    latent = attention.latent
    query_code_RX = code_RX
    rank = len(code_XH)
    if latent.q_lora_rank is not None:
        rank = min(rank, latent.q_lora_rank)
        attention.q_a_proj.weight[:rank, : token_RH.shape[1]] = code_XH[:rank]
        query_code_RX = _through_norm(token_RH @ code_XH[:rank].T, attention.q_a_layernorm)
    generator = torch.Generator().manual_seed(0)
    mixed = min(latent.qk_nope_head_dim, rank)
    keys = _heads(attention)
    factor = attention.score_factor * attention.head_dim**-0.5
    for head in range(len(keys)):
        random = torch.randn(rank, mixed, generator=generator, dtype=torch.double)
        mix_DX = torch.linalg.qr(random)[0].T.to(code_RX)
        own = ((query_code_RX[:, :rank] @ mix_DX.T) * (code_RX[:, :rank] @ mix_DX.T)).sum(1).mean()
        mix_DX = mix_DX * (SELF_SCORE / (factor * own)) ** 0.5
        keys[head, :mixed, :rank] = mix_DX
        rows = slice(head * latent.qk_head_dim, head * latent.qk_head_dim + mixed)
        if latent.q_lora_rank is not None:
            attention.q_b_proj.weight[rows, :rank] = mix_DX
        else:
            attention.q_proj.weight[rows, : token_RH.shape[1]] = mix_DX @ code_XH
