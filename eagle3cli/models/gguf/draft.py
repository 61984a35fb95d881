"""A draft as llama.cpp reads it: one GGUF file of the architecture ``eagle3``, with the target's tokenizer inside.

Read from llama.cpp's loader (``src/models/eagle3.cpp``, ``common/speculative.cpp``). It rotates neighbouring channels
where a draft here rotates halves, so that rows of q and k change places; ``eagle3.target_layers`` are the layers whose
inputs are read (vLLM's numbers); ``d2t`` holds tokens, not offsets.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eagle3cli.errors import ModelError
from eagle3cli.models.config import DraftConfig
from eagle3cli.models.contract import EMBEDDING, has_full_vocab
from eagle3cli.models.draft import rope_frequencies
from eagle3cli.models.gguf.file import Entry, Field, Outtype, decoded, encoded, kind_of, read_gguf, write_gguf

ARCHITECTURE = "eagle3"
ROTATED = ("blk.0.attn_q.weight", "blk.0.attn_k.weight")
FREQUENCIES = "rope_freqs.weight"
NAMES = {
    "fc.weight": "fc.weight",
    "input_norm.weight": "enc.output_norm.weight",
    "norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    EMBEDDING: "token_embd.weight",
    "d2t": "d2t",
    "midlayer.input_layernorm.weight": "blk.0.attn_norm.weight",
    "midlayer.hidden_norm.weight": "blk.0.attn_norm_2.weight",
    "midlayer.post_attention_layernorm.weight": "blk.0.ffn_norm.weight",
    "midlayer.self_attn.q_proj.weight": "blk.0.attn_q.weight",
    "midlayer.self_attn.k_proj.weight": "blk.0.attn_k.weight",
    "midlayer.self_attn.v_proj.weight": "blk.0.attn_v.weight",
    "midlayer.self_attn.o_proj.weight": "blk.0.attn_output.weight",
    "midlayer.mlp.gate_proj.weight": "blk.0.ffn_gate.weight",
    "midlayer.mlp.up_proj.weight": "blk.0.ffn_up.weight",
    "midlayer.mlp.down_proj.weight": "blk.0.ffn_down.weight",
}
"""llama.cpp's names of a draft's tensors."""


def file_name(outtype: Outtype) -> str:
    """The file in a draft's folder; llama.cpp finds the type of a file on the hub by its name."""
    return f"draft-{outtype.upper()}.gguf"


def write_draft(
    path: Path,
    state: Mapping[str, Tensor],
    config: DraftConfig,
    *,
    outtype: Outtype,
    vocabulary: Sequence[Field],
) -> None:
    """Write a draft to ``path``, then read it back and compare it with ``state``, config and every weight.

    ``vocabulary`` is the target's tokenizer: llama.cpp's ``tokenizer.*`` values. Raises ModelError on any difference,
    and for values that do not fit ``outtype``.
    """
    tensors = _tensors(state, config)
    write_gguf(
        path, ARCHITECTURE, [*_fields(config), *vocabulary], [Entry.of(*item) for item in tensors.items()], outtype
    )
    read_config, read = read_draft(path)
    different = [f"config: {key}" for key in _compared(config) if getattr(config, key) != getattr(read_config, key)]
    for name, value in state.items():
        if not torch.equal(_as_read(value, outtype), read[name]):
            different.append(name)
    if different:
        raise ModelError(
            "read-back-differs",
            f"reads back differently: {', '.join(different)}",
            where=str(path),
            fix="check the disk",
        )


def _compared(config: DraftConfig) -> tuple[str, ...]:
    sizes = ("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size")
    return (
        *sizes,
        *("draft_vocab_size", "target_hidden_size", "aux_layers", "max_position_embeddings", "num_hidden_layers"),
        *("norm_before_fc", "norm_before_residual", "own_embedding"),
    )


def _as_read(value: Tensor, outtype: Outtype) -> Tensor:
    """What a tensor is once it was written and read."""
    if not value.is_floating_point():
        return value
    kind = kind_of(value.shape, outtype)
    return decoded(encoded(value, kind), kind)


def read_draft(path: Path) -> tuple[DraftConfig, dict[str, Tensor]]:
    """The config and the weights (fp32, under our names) of a draft in a GGUF file.

    Raises ModelError where it is none. RoPE is not read: the frequencies stand there, not what they were made from.
    """
    values, tensors = read_gguf(path)
    if values.get("general.architecture") != ARCHITECTURE:
        what = f"holds a model of the architecture {values.get('general.architecture')!r}, not a draft"
        raise ModelError(
            "draft-format", what, where=str(path), fix="give a GGUF that eagle3 export --layout gguf wrote"
        )
    try:
        config = _config(values, tensors)
        state = {ours: tensors[theirs] for ours, theirs in NAMES.items() if theirs in tensors}
    except (KeyError, TypeError, ValueError) as error:
        what = f"not a whole draft: {type(error).__name__}: {error}"
        raise ModelError(
            "damaged-file", what, where=str(path), fix="write it anew: eagle3 export --layout gguf"
        ) from error
    for ours, theirs in NAMES.items():
        if theirs in ROTATED:
            state[ours] = _halves(state[ours], config.head_dim)
    tokens = state.get("d2t", torch.arange(config.vocab_size))
    state["t2d"] = torch.zeros(config.vocab_size, dtype=torch.bool)
    state["t2d"][tokens] = True
    state["d2t"] = tokens - torch.arange(len(tokens))
    return config, state


def _config(values: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> DraftConfig:
    own = {key.removeprefix(f"{ARCHITECTURE}."): value for key, value in values.items()}
    return DraftConfig(
        hidden_size=own["embedding_length"],
        intermediate_size=own["feed_forward_length"],
        num_attention_heads=own["attention.head_count"],
        num_key_value_heads=own["attention.head_count_kv"],
        head_dim=own["attention.key_length"],
        vocab_size=own["vocab_size"],
        draft_vocab_size=len(tensors["output.weight"]),
        target_hidden_size=own["target_hidden_size"],
        aux_layers=tuple(layer - 1 for layer in own["target_layers"]),
        rms_norm_eps=own["attention.layer_norm_rms_epsilon"],
        rope_theta=own["rope.freq_base"],
        max_position_embeddings=own["context_length"],
        norm_before_fc=own["norm_before_fc"],
        norm_before_residual=own["norm_before_residual"],
        num_hidden_layers=own["block_count"],
        own_embedding="token_embd.weight" in tensors,
    )


def _fields(config: DraftConfig) -> Iterable[Field]:
    _, factor = rope_frequencies(config)
    numbers = {
        "vocab_size": config.vocab_size,
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "rope.dimension_count": config.head_dim,
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads,
        "attention.key_length": config.head_dim,
        "attention.value_length": config.head_dim,
        "target_hidden_size": config.target_hidden_size,
    }
    yield Field("general.type", "model", "STRING")
    yield Field("general.name", "EAGLE-3 draft", "STRING")
    for key, value in numbers.items():
        yield Field(f"{ARCHITECTURE}.{key}", value, "UINT32")
    yield Field(f"{ARCHITECTURE}.attention.layer_norm_rms_epsilon", config.rms_norm_eps, "FLOAT32")
    yield Field(f"{ARCHITECTURE}.rope.freq_base", config.rope_theta, "FLOAT32")
    if factor != 1.0:
        yield Field(f"{ARCHITECTURE}.rope.scaling.attn_factor", factor, "FLOAT32")
    yield Field(f"{ARCHITECTURE}.target_layers", [layer + 1 for layer in config.aux_layers], "ARRAY", "INT32")
    yield Field(f"{ARCHITECTURE}.norm_before_residual", config.norm_before_residual, "BOOL")
    yield Field(f"{ARCHITECTURE}.norm_before_fc", config.norm_before_fc, "BOOL")


def _tensors(state: Mapping[str, Tensor], config: DraftConfig) -> dict[str, Tensor]:
    """The tensors under llama.cpp's names. A whole vocabulary needs no ``d2t``.

    RoPE of every kind is written as what it comes to: the factors by which its frequencies are slower than plain ones.
    """
    tensors = {NAMES[name]: value for name, value in state.items() if name in NAMES}
    for name in ROTATED:
        tensors[name] = pairs(tensors[name], config.head_dim)
    if has_full_vocab(config):
        del tensors["d2t"]
    else:
        tensors["d2t"] = state["d2t"] + torch.arange(config.draft_vocab_size)
    if config.rope_scaling is not None:
        plain, _ = rope_frequencies(replace(config, rope_scaling=None))
        frequencies, _ = rope_frequencies(config)
        tensors[FREQUENCIES] = plain / frequencies
    return tensors


def pairs(rows_AX: Tensor, head_dim: int) -> Tensor:
    """Rows of a projection in llama.cpp's order: channel j and its partner j + D/2 beside each other."""
    heads = rows_AX.unflatten(0, (-1, 2, head_dim // 2))
    paired: Tensor = heads.transpose(1, 2).reshape(rows_AX.shape)
    return paired


def _halves(rows_AX: Tensor, head_dim: int) -> Tensor:
    """The way back from :func:`pairs`."""
    heads = rows_AX.unflatten(0, (-1, head_dim // 2, 2))
    halved: Tensor = heads.transpose(1, 2).reshape(rows_AX.shape)
    return halved
