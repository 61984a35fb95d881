"""The draft model: its weights under SGLang's names, one layer body, and a plain forward pass.

Knows nothing about where its inputs come from or how keys are kept: the training unroll (``training/ttt/unroll.py``)
and the decoder (``serving/decode/decode.py``) run the same layers with an attention of their own.

The shape legend of the whole package. A tensor's name ends with its shape, one letter a dimension:

    B  sequences of a batch           S  tokens of one sequence        N  tokens of a packed batch, all sequences
    R  positions that are computed    L  positions that carry loss     U  teacher positions scored at once
    T  steps of the unroll            J  keys that a position made itself at later steps
    H  hidden size                    C  auxiliary width: layers x the target's hidden size
    A  query heads                    K  key/value heads               D  head size      O  q, k and v side by side
    V  target vocabulary              W  draft vocabulary              Q  query tokens of a decoding pass
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn import functional as F
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from eagle3cli.models.config import AUX_LAYERS, FLAGS, DraftConfig
from eagle3cli.models.layers.latent import LatentAttention
from eagle3cli.models.layers.parts import MLP, Attention, RMSNorm, Rope
from eagle3cli.models.layers.sizes import rope_factor
from eagle3cli.models.window import WINDOW_KEYS

AnyAttention = Attention | LatentAttention
AttentionFn = Callable[[Tensor], Tensor]
"""From the normed hidden states ``[R, H]`` to the output of all heads ``[R, A, D]``: projections, RoPE and softmax."""


def attention_of(config: DraftConfig, width: int) -> AnyAttention:
    """The attention of a layer that reads ``width`` channels."""
    return Attention(config, width) if config.latent is None else LatentAttention(config, config.latent, width)


class DecoderLayer(nn.Module):
    """A decoder layer after the first: its attention reads the normed hidden state alone."""

    def __init__(self, config: DraftConfig, width: int) -> None:
        super().__init__()
        self.self_attn = attention_of(config, width)
        self.mlp = MLP(config)
        self.hidden_norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.norm_before_residual = False

    def forward(self, hidden_RH: Tensor, attention: AttentionFn) -> Tensor:
        """``r = h + W_o att(RMS_hidden(h))``, then ``r + MLP(RMS_post(r))``; ``[R, H]``.

        The residual starts from ``h`` itself, not from what the attention reads (from the normed ``h`` where the
        config says ``norm_before_residual``).
        """
        normed_RH = self.hidden_norm(hidden_RH)
        residual_RH = normed_RH if self.norm_before_residual else hidden_RH
        residual_RH = residual_RH + self.self_attn.output(attention(normed_RH))
        out_RH: Tensor = residual_RH + self.mlp(self.post_attention_layernorm(residual_RH))
        return out_RH


class FirstLayer(DecoderLayer):
    """The first decoder layer, ``midlayer`` in checkpoints: its attention reads ``[embedding ; hidden]``, 2H wide."""

    def __init__(self, config: DraftConfig) -> None:
        super().__init__(config, 2 * config.hidden_size)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.norm_before_residual = config.norm_before_residual


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
        self.midlayer = FirstLayer(config)
        later = {str(index): DecoderLayer(config, config.hidden_size) for index in range(1, config.num_hidden_layers)}
        self.layers = nn.ModuleDict(later)
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
        trained = nn.Embedding(config.vocab_size, config.hidden_size) if config.own_embedding else None
        self.embed_tokens = trained
        """Of a draft that has its own; read it through :meth:`embedding`."""
        self.rotary = LlamaRotaryEmbedding(_rope_config(config))

    @property
    def stack(self) -> list[DecoderLayer]:
        """All decoder layers in order."""
        later = [layer for layer in self.layers.values() if isinstance(layer, DecoderLayer)]
        return [self.midlayer, *later]

    @property
    def draft_ids(self) -> Tensor:
        """Target token of every draft token, ``[W]``, ascending."""
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
        scale_C = self.aux_scale_C.to(aux_RC.dtype)
        if aux_RC.is_cuda:  # the weight is smaller than a batch of states, of which autograd would keep a copy
            return F.linear(self.fc_input(aux_RC), self.fc.weight / scale_C)
        hidden: Tensor = self.fc(self.fc_input(aux_RC) / scale_C)
        return hidden

    def head_and_carry(self, hidden_RH: Tensor) -> tuple[Tensor, Tensor]:
        """What the head reads, and what the next depth gets: the same with ``norm_output``, else ``h`` as it is."""
        normed_RH = self.norm(hidden_RH)
        return normed_RH, normed_RH if self.config.norm_output else hidden_RH

    def forward(
        self, input_ids_S: Tensor, hidden_SH: Tensor, embedding_VH: Tensor, position_ids_S: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """One pass over one sequence with causal attention: logits ``[S, W]`` and the next hidden states.

        Position p reads token ``input_ids_S[p] = x_{p+1}`` and ``hidden_SH[p]``: ``first_hidden(aux)`` at the first
        step, what the pass before returned at later ones. Its logits propose ``x_{p+2}``. Positions count from 0
        unless they are given. Training and decoding compute the same with fewer products; the tests compare them.
        """
        if position_ids_S is None:
            position_ids_S = torch.arange(len(input_ids_S), device=input_ids_S.device)
        rope = self.rope(position_ids_S, hidden_SH.dtype)
        embedded_SH = self.midlayer.input_layernorm(F.embedding(input_ids_S, embedding_VH).to(hidden_SH.dtype))
        window = self.config.sliding
        mask_SS = None if window is None else window.shows(position_ids_S[:, None], position_ids_S)
        for index, layer in enumerate(self.stack):
            prefix_SH = embedded_SH if index == 0 else None
            hidden_SH = layer(hidden_SH, partial(causal_attention, layer.self_attn, prefix_SH, rope, mask_SS))
        normed_SH, next_SH = self.head_and_carry(hidden_SH)
        return self.lm_head(normed_SH), next_SH

    def serving_state(self) -> dict[str, Tensor]:
        """The state dict that a server loads: the auxiliary scale folded into ``fc``. Copies; on the CPU.

        Of weights in shards all ranks must ask for it.
        """
        state = {name: whole(value.detach()).to("cpu", copy=True) for name, value in self.state_dict().items()}
        scale = self.aux_scale_C.detach().to("cpu", torch.float32)
        state["fc.weight"] = (state["fc.weight"].float() / scale).to(state["fc.weight"].dtype)
        return state

    def rope(self, positions_R: Tensor, dtype: torch.dtype) -> Rope:
        """Cosine and sine tables ``[R, D]`` for these positions."""
        cos, sin = self.rotary(torch.empty(0, dtype=dtype, device=positions_R.device), positions_R[None])
        return cos[0], sin[0]


def causal_attention(
    attention: Attention | LatentAttention,
    embedded_SH: Tensor | None,
    rope: Rope,
    mask_SS: Tensor | None,
    normed_SH: Tensor,
) -> Tensor:
    """Every position attends to itself and those before it, or to those that a mask shows; ``[S, A, D]``."""
    read_SX = normed_SH if embedded_SH is None else torch.cat((embedded_SH, normed_SH), -1)
    query, key, value = (states.transpose(0, 1) for states in attention.qkv(read_SX, rope))
    attended_ASD = F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask_SS, is_causal=mask_SS is None, enable_gqa=True
    )
    return attended_ASD.transpose(0, 1)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be in shards; all ranks must ask."""
    full: Tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full


def rope_frequencies(config: DraftConfig) -> tuple[Tensor, float]:
    """The inverse frequencies ``[D / 2]`` of a draft's RoPE, and the factor of its cosines and sines."""
    rotary = LlamaRotaryEmbedding(_rope_config(config))
    return rotary.inv_freq.float(), float(rotary.attention_scaling)


def _rope_config(config: DraftConfig) -> LlamaConfig:
    if config.latent is not None:
        return _latent_rope_config(config)
    raw = {
        k: v
        for k, v in config.to_sglang().items()
        if k not in ("architectures", "torch_dtype", "dtype", "eagle_config", AUX_LAYERS, *FLAGS, *WINDOW_KEYS)
    }
    return LlamaConfig(**raw)


def _latent_rope_config(config: DraftConfig) -> LlamaConfig:
    """One head of the channels that turn; the factor of cosines and sines is DeepSeek's, which transformers' YaRN takes
    from elsewhere where ``mscale`` stands alone."""
    assert config.latent is not None
    size = config.latent.qk_rope_head_dim
    scaling = dict(config.rope_scaling or {})
    if scaling:
        scaling["attention_factor"] = rope_factor(config.rope_scaling)
    raw: dict[str, Any] = {
        **{"hidden_size": size, "num_attention_heads": 1, "head_dim": size},
        "max_position_embeddings": config.max_position_embeddings,
        "rope_parameters": {"rope_type": "default", **scaling, "rope_theta": config.rope_theta},
        **{"rope_theta": config.rope_theta, "rope_scaling": scaling or None},
    }
    return LlamaConfig(**raw)
