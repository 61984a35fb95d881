"""Norm, MLP, rotation, and the projections of the usual attention.

The shape legend is in ``models/draft.py``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from eagle3cli.models import kernels
from eagle3cli.models.config import DraftConfig

Rope = tuple[Tensor, Tensor]
"""Cosines and sines, ``[R, D]`` each."""


class RMSNorm(nn.Module):
    """A root-mean-square norm; statistics in fp32."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``w * x / sqrt(mean(x^2) + eps)`` over the last dimension."""
        if x.dtype == torch.float32:
            return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)
        if x.is_cuda and x.shape[-1] <= kernels.WIDEST_NORM and kernels.triton_runs():
            from eagle3cli.models.kernels import rms_norm

            return rms_norm.rms_norm(x, self.weight, self.eps)
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(x.dtype)


class Attention(nn.Module):
    """The projections of an attention, which read ``width`` channels. Who attends to what is the caller's."""

    def __init__(self, config: DraftConfig, width: int) -> None:
        super().__init__()
        query_width = config.num_attention_heads * config.head_dim
        kv_width = config.num_key_value_heads * config.head_dim
        self.head_dim = config.head_dim
        self.q_proj = nn.Linear(width, query_width, bias=False)
        self.k_proj = nn.Linear(width, kv_width, bias=False)
        self.v_proj = nn.Linear(width, kv_width, bias=False)
        self.o_proj = nn.Linear(query_width, config.hidden_size, bias=False)

    @property
    def query_channels(self) -> int:
        """Channels of :meth:`joint_weight` that the queries are made of: the first ones."""
        return self.q_proj.out_features

    def joint_weight(self) -> Tensor:
        """What the input is multiplied by, ``[O, X]``: the weights of q, k and v side by side."""
        return torch.cat((self.q_proj.weight, self.k_proj.weight, self.v_proj.weight))

    def queries(self, query_RO: Tensor, rope: Rope) -> Tensor:
        """Rotated queries ``[R, A, D]`` from their channels of the joint product."""
        return rotate(query_RO.unflatten(-1, (-1, self.head_dim)), *rope)

    def keys_values(self, kv_RO: Tensor, rope: Rope) -> tuple[Tensor, Tensor]:
        """Rotated keys and values ``[R, K, D]`` from the other channels."""
        key_RO, value_RO = kv_RO.chunk(2, -1)
        # Values are a copy: as a view they would keep the whole projection alive until the backward pass.
        value_RKD = value_RO.contiguous().unflatten(-1, (-1, self.head_dim))
        return rotate(key_RO.unflatten(-1, (-1, self.head_dim)), *rope), value_RKD

    def qkv(self, x_RX: Tensor, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """Rotated queries ``[R, A, D]``, rotated keys and values ``[R, K, D]``."""
        query_RAD = self.q_proj(x_RX).unflatten(-1, (-1, self.head_dim))
        key_RKD = self.k_proj(x_RX).unflatten(-1, (-1, self.head_dim))
        value_RKD = self.v_proj(x_RX).unflatten(-1, (-1, self.head_dim))
        return rotate(query_RAD, *rope), rotate(key_RKD, *rope), value_RKD

    def output(self, attended_RAD: Tensor) -> Tensor:
        """The output of all heads, projected: ``[R, H]``."""
        out_RH: Tensor = self.o_proj(attended_RAD.flatten(1))
        return out_RH


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_RH: Tensor) -> Tensor:
        """``W_down(silu(W_gate x) * W_up x)``."""
        gate = self.gate_proj(x_RH)
        up = self.up_proj(x_RH)
        if gate.is_cuda:
            out: Tensor = _GatedDown.apply(gate, up, self.down_proj.weight)  # type: ignore[no-untyped-call]
            return out
        gated: Tensor = _SiluGate.apply(gate, up)  # type: ignore[no-untyped-call]
        out = self.down_proj(gated)
        return out


class _SiluGate(torch.autograd.Function):
    """``silu(gate) * up`` that keeps its inputs alone: half of what autograd would keep of an MLP's activations."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _gated(gate, up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        return _gated_backward(grads[0], gate, up)


class _GatedDown(torch.autograd.Function):
    """Gate and down projection in one, which keep nothing of what lies between them.

    The gated product is made again in the backward pass: on a GPU reading its two factors once more costs little beside
    the three products around it, and at every step of the unroll a matrix ``[R, intermediate]`` less is kept.
    """

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up, weight)
        return F.linear(_gated(gate, up), weight)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        gate, up, weight = ctx.saved_tensors
        d_weight = grads[0].T @ _gated(gate, up)
        return *_gated_backward(grads[0] @ weight, gate, up), d_weight


def _gated(gate: Tensor, up: Tensor) -> Tensor:
    if gate.is_cuda and kernels.triton_runs():
        from eagle3cli.models.kernels import silu_gate

        return silu_gate.silu_gate(gate, up)
    return F.silu(gate).mul_(up)


def _gated_backward(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    if gate.is_cuda and kernels.triton_runs():
        from eagle3cli.models.kernels import silu_gate

        return silu_gate.silu_gate_backward(grad, gate, up)
    d_up = F.silu(gate).mul_(grad)
    d_gate: Tensor = torch.ops.aten.silu_backward(grad * up, gate)
    return d_gate, d_up


def rotate(x_RAD: Tensor, cos_RD: Tensor, sin_RD: Tensor) -> Tensor:
    """Rotary position embedding, half-split layout: dimension j pairs with j + D/2."""
    if x_RAD.is_cuda and kernels.triton_runs():
        from eagle3cli.models.kernels import rotary

        return rotary.rotate(x_RAD, cos_RD, sin_RD)
    low, high = x_RAD.chunk(2, dim=-1)
    turned = torch.cat((-high, low), dim=-1)
    return x_RAD * cos_RD[:, None] + turned * sin_RD[:, None]
