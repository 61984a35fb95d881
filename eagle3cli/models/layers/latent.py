"""The projections of latent attention: queries, keys and values of every head, as the usual attention wants them.

Nothing is absorbed: a latent is expanded to each head's key and value, so that the unroll, its kernels and the decoder
attend as they always do. Queries and keys are wider than values (192 and 128 channels in DeepSeek-V3); the narrower
are padded with zeros, which change no score, and of the output only the values' channels are read.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eagle3cli.models.config import DraftConfig
from eagle3cli.models.layers.parts import RMSNorm, Rope, rotate
from eagle3cli.models.layers.sizes import Latent, softmax_factor


class LatentAttention(nn.Module):
    """Latent attention that reads ``width`` channels, under DeepSeek's names. Stands in for ``Attention``."""

    def __init__(self, config: DraftConfig, latent: Latent, width: int) -> None:
        super().__init__()
        heads = config.num_attention_heads
        self.latent = latent
        self.head_dim = latent.width
        # Kernels divide scores by the root of the width that they see; YaRN multiplies them besides.
        self.score_factor = softmax_factor(config.rope_scaling) * (latent.width / latent.qk_head_dim) ** 0.5
        if latent.q_lora_rank is None:
            self.q_proj = nn.Linear(width, heads * latent.qk_head_dim, bias=False)
        else:
            self.q_a_proj = nn.Linear(width, latent.q_lora_rank, bias=False)
            self.q_a_layernorm = RMSNorm(latent.q_lora_rank, config.rms_norm_eps)
            self.q_b_proj = nn.Linear(latent.q_lora_rank, heads * latent.qk_head_dim, bias=False)
        rank = latent.kv_lora_rank
        self.kv_a_proj_with_mqa = nn.Linear(width, rank + latent.qk_rope_head_dim, bias=False)
        self.kv_a_layernorm = RMSNorm(rank, config.rms_norm_eps)
        self.kv_b_proj = nn.Linear(rank, heads * (latent.qk_nope_head_dim + latent.v_head_dim), bias=False)
        self.o_proj = nn.Linear(heads * latent.v_head_dim, config.hidden_size, bias=False)

    @property
    def query_channels(self) -> int:
        """Channels of :meth:`joint_weight` that the queries are made of: the first ones."""
        return self._query_input.out_features

    @property
    def _query_input(self) -> nn.Linear:
        return self.q_proj if self.latent.q_lora_rank is None else self.q_a_proj

    def joint_weight(self) -> Tensor:
        """What the input is multiplied by, ``[O, X]``: to the queries' latent, to that of keys and values, and to the
        channels of the keys that turn."""
        return torch.cat((self._query_input.weight, self.kv_a_proj_with_mqa.weight))

    def queries(self, query_RO: Tensor, rope: Rope) -> Tensor:
        """Rotated queries ``[R, A, D]`` from their channels of the joint product, with the factor of their scores."""
        latent = self.latent
        if latent.q_lora_rank is not None:
            query_RO = self.q_b_proj(self.q_a_layernorm(query_RO))
        still, turned = query_RO.unflatten(-1, (-1, latent.qk_head_dim)).split(
            (latent.qk_nope_head_dim, latent.qk_rope_head_dim), -1
        )
        query_RAD = self._padded(torch.cat((still, rotate(_halves(turned), *rope)), -1))
        return query_RAD if self.score_factor == 1.0 else query_RAD * self.score_factor

    def keys_values(self, kv_RO: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        """Rotated keys and values ``[R, A, D]`` from the other channels: the latent expanded for every head."""
        latent = self.latent
        shared, turned = kv_RO.split((latent.kv_lora_rank, latent.qk_rope_head_dim), -1)
        heads = self.kv_b_proj(self.kv_a_layernorm(shared)).unflatten(
            -1, (-1, latent.qk_nope_head_dim + latent.v_head_dim)
        )
        still, value = heads.split((latent.qk_nope_head_dim, latent.v_head_dim), -1)
        turned_R1D = rotate(_halves(turned[:, None]), *rope)
        key_RAD = torch.cat((still, turned_R1D.expand(-1, still.shape[1], -1)), -1)
        # Values are a copy: as a view they would keep the keys' half alive until the backward pass.
        return self._padded(key_RAD), self._padded(value).contiguous()

    def qkv(self, x_RX: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries, rotated keys and values, ``[R, A, D]`` each."""
        query = self.queries(self._query_input(x_RX), rope)
        return query, *self.keys_values(self.kv_a_proj_with_mqa(x_RX), rope)

    def output(self, attended_RAD: Tensor) -> Tensor:
        """The output of all heads, projected: ``[R, H]``."""
        out_RH: Tensor = self.o_proj(attended_RAD[..., : self.latent.v_head_dim].flatten(1))
        return out_RH

    def _padded(self, states_RAX: Tensor) -> Tensor:
        missing = self.head_dim - states_RAX.shape[-1]
        return F.pad(states_RAX, (0, missing)) if missing else states_RAX


def _halves(interleaved_RAD: Tensor) -> Tensor:
    """Channels in the order of ``rotate``: the first of every pair, then the second. Of queries and keys alike, it
    changes no score."""
    pairs: Tensor = interleaved_RAD.unflatten(-1, (-1, 2))
    return pairs.transpose(-1, -2).flatten(-2)
