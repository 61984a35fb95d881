"""The draft model: its weights under SGLang's names, and the pieces that training and decoding are both made of.

Knows nothing about where its inputs come from, how rows are chosen, or how keys are kept: see
``training/ttt/unroll.py`` and ``serving/decode/decode.py``. Shapes: R rows, H hidden, C = aux layers x target hidden,
N heads, K key/value heads, D head size, Vd draft vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from eagle3cli.models.config import AUX_LAYERS, FLAGS, DraftConfig


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
        wide = x.float()
        scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return self.weight * scaled.to(x.dtype)


class Attention(nn.Module):
    """The projections of an attention; q, k, v read ``width`` channels."""

    def __init__(self, c: DraftConfig, width: int) -> None:
        super().__init__()
        heads, groups = c.num_attention_heads * c.head_dim, c.num_key_value_heads * c.head_dim
        self.q_proj = nn.Linear(width, heads, bias=False)
        self.k_proj = nn.Linear(width, groups, bias=False)
        self.v_proj = nn.Linear(width, groups, bias=False)
        self.o_proj = nn.Linear(heads, c.hidden_size, bias=False)


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, c: DraftConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.up_proj = nn.Linear(c.hidden_size, c.intermediate_size, bias=False)
        self.down_proj = nn.Linear(c.intermediate_size, c.hidden_size, bias=False)

    def forward(self, x_RH: Tensor) -> Tensor:
        """``W_down(silu(W_gate x) * W_up x)``."""
        gated: Tensor = _SiluGate.apply(self.gate_proj(x_RH), self.up_proj(x_RH))  # type: ignore[no-untyped-call]
        out: Tensor = self.down_proj(gated)
        return out


class _SiluGate(torch.autograd.Function):
    """``silu(gate) * up`` that keeps its inputs alone: half of what autograd would keep of an MLP's activations."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        gate, up = ctx.saved_tensors
        d_up = F.silu(gate).mul_(grads[0])
        d_gate: Tensor = torch.ops.aten.silu_backward(grads[0] * up, gate)
        return d_gate, d_up


class InnerLayer(nn.Module):
    """A decoder layer after the first: its attention reads the normed hidden state alone."""

    def __init__(self, c: DraftConfig, width: int) -> None:
        super().__init__()
        self.self_attn = Attention(c, width)
        self.mlp = MLP(c)
        self.hidden_norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)

    def finish(self, residual_RH: Tensor, attended_RND: Tensor) -> Tensor:
        """Residuals and MLP after attention: ``r = residual + W_o att``, then ``r + MLP(RMS_post(r))``; ``[R, H]``."""
        residual_RH = residual_RH + self.self_attn.o_proj(attended_RND.flatten(1))
        out: Tensor = residual_RH + self.mlp(self.post_attention_layernorm(residual_RH))
        return out


class Layer(InnerLayer):
    """The first decoder layer, ``midlayer`` in checkpoints: its attention reads ``[embedding ; hidden]``, 2H wide."""

    def __init__(self, c: DraftConfig) -> None:
        super().__init__(c, 2 * c.hidden_size)
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)


class Draft(nn.Module):
    """An EAGLE-3 draft. ``d2t`` and ``t2d`` are buffers; the embedding is usually the target's and stays outside.

    ``aux_scale_C`` divides what ``fc`` reads: a few channels of the auxiliary states are hundreds of times larger than
    the rest, and one optimiser step would move them all alike. It is folded into ``fc`` in every checkpoint.
    """

    d2t: Tensor
    t2d: Tensor
    aux_scale_C: Tensor

    def __init__(self, config: DraftConfig) -> None:
        super().__init__()
        self.config = config
        self.midlayer = Layer(config)
        inner = {str(index): InnerLayer(config, config.hidden_size) for index in range(1, config.num_hidden_layers)}
        self.layers = nn.ModuleDict(inner)
        """Layers after the first, under the numbers that they have in checkpoints."""
        aux_width = len(config.aux_layers) * config.target_hidden_size
        norms = [RMSNorm(config.target_hidden_size, config.rms_norm_eps) for _ in config.aux_layers]
        self.fc_norm = nn.ModuleList(norms) if config.fc_norm else None
        self.input_norm = RMSNorm(aux_width, config.rms_norm_eps) if config.norm_before_fc else None
        self.fc = nn.Linear(aux_width, config.hidden_size, bias=False)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = nn.Linear(config.hidden_size, config.draft_vocab_size, bias=False)
        self.register_buffer("d2t", torch.zeros(config.draft_vocab_size, dtype=torch.long))
        self.register_buffer("t2d", torch.ones(config.vocab_size, dtype=torch.bool))
        self.register_buffer("aux_scale_C", torch.ones(aux_width), persistent=False)
        own = nn.Embedding(config.vocab_size, config.hidden_size) if config.own_embedding else None
        self.embed_tokens = own
        """Of a draft that has its own; read it through :meth:`embedding`."""
        self.rotary = LlamaRotaryEmbedding(_rope_config(config))

    @property
    def stack(self) -> list[InnerLayer]:
        """All decoder layers in order; the first one is a :class:`Layer`."""
        inner = [layer for layer in self.layers.values() if isinstance(layer, InnerLayer)]
        return [self.midlayer, *inner]

    @property
    def draft_ids(self) -> Tensor:
        """Target token of every draft token, ``[Vd]``, ascending."""
        return self.d2t + torch.arange(len(self.d2t), device=self.d2t.device)

    def cast(self, dtype: torch.dtype) -> Draft:
        """Change the type of the weights alone: RoPE frequencies and the auxiliary scale stay fp32."""
        for weight in self.parameters():
            weight.data = weight.data.to(dtype)
        return self

    def embedding(self, target_VH: Tensor) -> Tensor:
        """The embedding that the draft reads: its own where it has one, else the target's."""
        return target_VH if self.embed_tokens is None else self.embed_tokens.weight

    def set_vocab(self, d2t: Tensor, t2d: Tensor) -> None:
        """Use this draft vocabulary (``d2t`` as offsets, ``t2d`` as a mask over the target's tokens)."""
        self.d2t.copy_(d2t)
        self.t2d.copy_(t2d)

    def set_aux_scale(self, scale_C: Tensor) -> None:
        """Change the scale of the auxiliary states without changing the function that ``fc`` computes."""
        with torch.no_grad():
            self.fc.weight.mul_((scale_C / self.aux_scale_C).to(self.fc.weight.dtype))
            self.aux_scale_C.copy_(scale_C)

    def fc_input(self, aux_RC: Tensor) -> Tensor:
        """What ``fc`` reads, before the auxiliary scale: the states, normed together or each layer's where asked."""
        if self.input_norm is not None:
            aux_RC = self.input_norm(aux_RC)
        if self.fc_norm is None:
            return aux_RC
        parts = aux_RC.chunk(len(self.fc_norm), dim=-1)
        return torch.cat([norm(part) for norm, part in zip(self.fc_norm, parts, strict=True)], -1)

    def first_hidden(self, aux_RC: Tensor) -> Tensor:
        """``h^0 = fc(a)``, ``[R, H]``."""
        hidden: Tensor = self.fc(self.fc_input(aux_RC) / self.aux_scale_C.to(aux_RC.dtype))
        return hidden

    def head_and_carry(self, hidden_RH: Tensor) -> tuple[Tensor, Tensor]:
        """What the head reads, and what the next depth gets: the same with ``norm_output``, else ``h`` as it is."""
        normed_RH = self.norm(hidden_RH)
        return normed_RH, normed_RH if self.config.norm_output else hidden_RH

    def serving_state(self) -> dict[str, Tensor]:
        """The state dict that a server loads: the auxiliary scale folded into ``fc``. Copies; on the CPU.

        Of weights in shards all ranks must ask for it.
        """
        state = {name: whole(value.detach()).to("cpu", copy=True) for name, value in self.state_dict().items()}
        scale = self.aux_scale_C.detach().to("cpu", torch.float32)
        state["fc.weight"] = (state["fc.weight"].float() / scale).to(state["fc.weight"].dtype)
        return state

    def embedding_half(self, embedded_RH: Tensor, weight_O2H: Tensor) -> Tensor:
        """The part of q, k or v that depends on the newest token alone: ``W[:, :H] RMS_in(embed(x))``.

        One token position feeds several depths, so this is computed once per position (``embedded`` is already
        normed).
        """
        return F.linear(embedded_RH, weight_O2H[:, : self.config.hidden_size])

    def hidden_half(self, normed_RH: Tensor, weight_O2H: Tensor) -> Tensor:
        """The part of q, k or v that depends on the hidden state: ``W[:, H:] RMS_hidden(h)``."""
        return F.linear(normed_RH, weight_O2H[:, self.config.hidden_size :])

    def residual(self, hidden_RH: Tensor, normed_RH: Tensor) -> Tensor:
        """What the first layer's residual starts from."""
        return normed_RH if self.config.norm_before_residual else hidden_RH

    def rope(self, positions_R: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine tables ``[R, D]`` for these positions."""
        cos, sin = self.rotary(torch.empty(0, dtype=dtype, device=positions_R.device), positions_R[None])
        return cos[0], sin[0]


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be in shards; all ranks must ask."""
    found: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return found


def rotate(x_RND: Tensor, cos_RD: Tensor, sin_RD: Tensor) -> Tensor:
    """Rotary position embedding, half-split layout: dimension j pairs with j + D/2."""
    low, high = x_RND.chunk(2, dim=-1)
    turned = torch.cat((-high, low), dim=-1)
    return x_RND * cos_RD[:, None] + turned * sin_RD[:, None]


def _rope_config(config: DraftConfig) -> LlamaConfig:
    raw = {
        k: v
        for k, v in config.to_sglang().items()
        if k not in ("architectures", "torch_dtype", "dtype", "eagle_config", AUX_LAYERS, *FLAGS)
    }
    return LlamaConfig(**raw)
