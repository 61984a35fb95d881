"""Decoder layers with as few operations as decoding needs: those of a draft, and of targets that are made alike.

At one to six rows a pass is bound by reading the weights and by the number of calls; so projections that read the same
rows are one product, norms and rotations are functions, and the mask is made once a pass. Every step rounds as
transformers' own layers do. Which targets these layers fit says :mod:`eagle3cli.serving.decode.passes`.

The shape legend is in ``models/draft.py``; E are the queries of the heads that share a key, group by group.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eagle3cli.backends.target.positions import PositionCache, position_mask
from eagle3cli.models.draft import DecoderLayer
from eagle3cli.models.layers.latent import LatentAttention
from eagle3cli.models.layers.parts import Attention, Rope
from eagle3cli.models.window import Window
from eagle3cli.serving.decode.products import Product, product


@dataclass(frozen=True)
class Norm:
    """A root-mean-square norm with the roundings of Llama's: statistics in fp32, the weight in the model's type."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """``w * x / sqrt(mean(x^2) + eps)`` over the last dimension."""
        if x.dtype == torch.float32:
            return F.rms_norm(x, self.weight.shape, self.weight, self.eps)
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(x.dtype)


def norm_of(module: Any) -> Norm:
    """The norm of a draft's or a transformers model's module."""
    eps = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps
    return Norm(module.weight.detach(), float(eps))


@dataclass(frozen=True)
class Place:
    """Where the rows of a pass stand: the same for all of its layers."""

    cache: PositionCache
    batch: int
    cos_R1D: Tensor
    sin_R1D: Tensor
    """Sines with the sign that the rotated half has."""
    rope: Rope
    mask_B1ES: Tensor | None
    """None where the one query sees every slot."""


def place_at(
    cache: PositionCache, positions_BQ: Tensor, rope: Rope, groups: int, window: Window | None = None
) -> Place:
    """Point the cache at these positions; ``rope`` has a row for each. ``window`` is a draft's."""
    batch, queries = positions_BQ.shape
    extent = int(positions_BQ.max()) + 1
    cos_RD, sin_RD = rope
    cache.point(torch.arange(batch, device=positions_BQ.device), positions_BQ, extent)
    mask = None
    if batch * queries > 1 or (window is not None and extent > window.size):
        mask = position_mask(positions_BQ, extent, cos_RD.dtype, window).repeat(1, 1, groups, 1)
    half = sin_RD.shape[-1] // 2
    signed_RD = torch.cat((-sin_RD[:, :half], sin_RD[:, half:]), -1)
    return Place(cache, batch, cos_RD[:, None], signed_RD[:, None], rope, mask)


@dataclass(frozen=True)
class Layer:
    """Attention and SwiGLU, each behind a norm and added to what it read."""

    hidden_norm: Norm
    qkv: Product
    out: Product
    mlp_norm: Norm
    gate_up: Product
    down: Product
    heads: int
    kv_heads: int
    head_dim: int
    scaling: float
    query_norm: Norm | None = None
    key_norm: Norm | None = None
    norm_before_residual: bool = False

    def __call__(self, hidden_RH: Tensor, place: Place, index: int, prefix_RH: Tensor | None = None) -> Tensor:
        """Hidden states behind the layer, which keeps its keys at ``index`` of the cache; a draft's first layer reads
        ``[prefix ; normed]``."""
        normed_RH = self.hidden_norm(hidden_RH)
        read = normed_RH if prefix_RH is None else torch.cat((prefix_RH, normed_RH), -1)
        attended_RO = self._attend(self.qkv(read), place, index)
        hidden_RH = self.out(attended_RO).add_(normed_RH if self.norm_before_residual else hidden_RH)
        gate, up = self.gate_up(self.mlp_norm(hidden_RH)).chunk(2, -1)
        return self.down(F.silu(gate).mul_(up)).add_(hidden_RH)

    def _attend(self, qkv_RO: Tensor, place: Place, index: int) -> Tensor:
        """Outputs of all heads, ``[R, A * D]``."""
        states = qkv_RO.view(len(qkv_RO), -1, self.head_dim)
        turned, value = states.split((self.heads + self.kv_heads, self.kv_heads), 1)
        if self.query_norm is not None and self.key_norm is not None:
            turned = torch.cat((self.query_norm(turned[:, : self.heads]), self.key_norm(turned[:, self.heads :])), 1)
        # Half-split rotation: rolled by a half, with the sign in the sines, it is what "rotate half" gives.
        turned = turned * place.cos_R1D + turned.roll(self.head_dim // 2, -1) * place.sin_R1D
        batch = place.batch
        queries = len(qkv_RO) // batch
        query_BAQD, key_BKQD = (
            part.unflatten(0, (batch, queries)).transpose(1, 2) for part in turned.split((self.heads, self.kv_heads), 1)
        )
        value_BKQD = value.unflatten(0, (batch, queries)).transpose(1, 2)
        keys_BKSD, values_BKSD = place.cache.update(key_BKQD, value_BKQD, index)
        # The heads of a group read the same keys: as more query rows of one head they need no copies of them.
        grouped_BKED = query_BAQD.reshape(batch, self.kv_heads, -1, self.head_dim)
        attended = F.scaled_dot_product_attention(
            grouped_BKED, keys_BKSD, values_BKSD, attn_mask=place.mask_B1ES, scale=self.scaling
        )
        return attended.view(batch, self.heads, queries, self.head_dim).transpose(1, 2).reshape(len(qkv_RO), -1)


@dataclass(frozen=True)
class LatentLayer(Layer):
    """A draft's layer of latent attention (MLA), whose ``qkv`` makes the latents: heads are expanded as in training."""

    module: LatentAttention = field(kw_only=True)

    def _attend(self, qkv_RO: Tensor, place: Place, index: int) -> Tensor:
        module = self.module
        query_RO, kv_RO = qkv_RO.tensor_split((module.query_channels,), -1)
        query_RAD = module.queries(query_RO, place.rope)
        key_RAD, value_RAD = module.keys_values(kv_RO, place.rope)
        shape = (place.batch, len(qkv_RO) // place.batch)
        query_BAQD, key_BAQD, value_BAQD = (
            part.unflatten(0, shape).transpose(1, 2) for part in (query_RAD, key_RAD, value_RAD)
        )
        keys_BASD, values_BASD = place.cache.update(key_BAQD, value_BAQD, index)
        attended_BAQD = F.scaled_dot_product_attention(
            query_BAQD, keys_BASD, values_BASD, attn_mask=place.mask_B1ES, scale=self.scaling
        )
        return attended_BAQD.transpose(1, 2)[..., : module.latent.v_head_dim].reshape(len(qkv_RO), -1)


def draft_layer(module: DecoderLayer, *, ordered: bool) -> Layer:
    """The layer of a draft's module."""
    attention = module.self_attn
    size = attention.head_dim
    more = {"scaling": size**-0.5, "ordered": ordered, "norm_before_residual": module.norm_before_residual}
    if isinstance(attention, Attention):
        return layer_of(module, size, module.hidden_norm, **more)
    mlp = module.mlp
    heads = attention.o_proj.in_features // attention.latent.v_head_dim
    return LatentLayer(
        hidden_norm=norm_of(module.hidden_norm),
        qkv=product([attention.joint_weight().detach()], ordered=ordered),
        out=product([attention.o_proj.weight.detach()], ordered=ordered),
        mlp_norm=norm_of(module.post_attention_layernorm),
        gate_up=product([mlp.gate_proj.weight.detach(), mlp.up_proj.weight.detach()], ordered=ordered),
        down=product([mlp.down_proj.weight.detach()], ordered=ordered),
        heads=heads,
        kv_heads=heads,
        head_dim=size,
        scaling=size**-0.5,
        norm_before_residual=module.norm_before_residual,
        module=attention,
    )


def layer_of(module: Any, head_dim: int, hidden_norm: Any, *, scaling: float, ordered: bool, **more: Any) -> Layer:
    """The layer of a module with the names that Llama's parts have; ``hidden_norm`` is what its attention reads by."""
    attention, mlp = module.self_attn, module.mlp
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)

    def of(*linears: Any) -> Product:
        weights = [linear.weight.detach() for linear in linears]
        return product(weights, [linear.bias for linear in linears], ordered=ordered)

    return Layer(
        hidden_norm=norm_of(hidden_norm),
        qkv=of(*projections),
        out=of(attention.o_proj),
        mlp_norm=norm_of(module.post_attention_layernorm),
        gate_up=of(mlp.gate_proj, mlp.up_proj),
        down=of(mlp.down_proj),
        heads=attention.q_proj.weight.shape[0] // head_dim,
        kv_heads=attention.k_proj.weight.shape[0] // head_dim,
        head_dim=head_dim,
        scaling=scaling,
        query_norm=norm_of(attention.q_norm) if hasattr(attention, "q_norm") else None,
        key_norm=norm_of(attention.k_norm) if hasattr(attention, "k_norm") else None,
        **more,
    )
