"""What a draft folder must be for a server: every key, name, shape and type, and what each layout cannot hold.

Knows nothing about files: see ``models/checkpoint.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from eagle3cli.models.aux_layers import text_part
from eagle3cli.models.config import ARCHITECTURE, AUX_LAYERS, EAGLE31_FLAGS, DraftConfig, named_aux_layers
from eagle3cli.models.engines import (
    SGLANG_FIRST_IS_1,
    Engine,
    sglang_layers,
    target_class,
    unread_last_layer,
    unread_latent,
    unread_layers,
    unread_window,
)
from eagle3cli.models.layers import sizes
from eagle3cli.models.layers.sizes import Latent, is_latent
from eagle3cli.models.rope import KEPT
from eagle3cli.models.speculators import renamed

Layout = Literal["sglang", "vllm", "legacy", "speculators", "gguf"]
LAYOUTS: tuple[Layout, ...] = ("sglang", "vllm", "legacy", "speculators", "gguf")
LAYOUT_OF: dict[Engine, Layout] = {"sglang": "sglang", "vllm": "vllm", "llama.cpp": "gguf"}
"""The layout of each engine's own options."""
LEAST_LAYERS: dict[Layout, int] = {"legacy": 3, "gguf": 3}
"""Auxiliary layers that a layout's servers want at least; ``export`` adds some with zeros in ``fc``. Else one."""
EMBEDDING = "embed_tokens.weight"
NEW_KEYS = ("rope_parameters", "dtype")
"""Keys of transformers 5 that a ``legacy`` folder leaves out; it says the same in the older keys."""

Shape = tuple[int, ...]


def expected_shapes(config: DraftConfig) -> dict[str, Shape]:
    """Name and shape of every tensor that a draft of this config has."""
    h = config.hidden_size
    aux = len(config.aux_layers)
    shapes: dict[str, Shape] = _layer_shapes("midlayer", config, 2 * h) | {"midlayer.input_layernorm.weight": (h,)}
    for index in range(1, config.num_hidden_layers):
        shapes |= _layer_shapes(f"layers.{index}", config, h)
    if config.fc_norm:
        shapes |= {f"fc_norm.{i}.weight": (config.target_hidden_size,) for i in range(aux)}
    if config.norm_before_fc:
        shapes["input_norm.weight"] = (aux * config.target_hidden_size,)
    if config.own_embedding:
        shapes[EMBEDDING] = (config.vocab_size, h)
    return shapes | {
        "fc.weight": (h, aux * config.target_hidden_size),
        "norm.weight": (h,),
        "lm_head.weight": (config.draft_vocab_size, h),
        "d2t": (config.draft_vocab_size,),
        "t2d": (config.vocab_size,),
    }


def folder_shapes(config: DraftConfig, layout: Layout = "sglang") -> dict[str, Shape]:
    """Name and shape of every tensor in a draft's folder.

    The norm before a later layer's attention is ``hidden_norm`` to SGLang and ``input_layernorm`` to vLLM, so it is
    written under both names, but in speculators' format. A whole vocabulary needs no mapping, and vLLM refuses one.
    """
    shapes = expected_shapes(config)
    left_out = ("d2t", "t2d") if has_full_vocab(config) else ()
    shapes = {name: shape for name, shape in shapes.items() if name not in left_out}
    if layout == "speculators":
        return renamed(shapes)
    return shapes | {alias: shapes[name] for name, alias in renamed_copies(config).items()}


def renamed_copies(config: DraftConfig) -> dict[str, str]:
    """Tensors that are written twice, and their second name."""
    layers = (f"layers.{index}" for index in range(1, config.num_hidden_layers))
    return {f"{layer}.hidden_norm.weight": f"{layer}.input_layernorm.weight" for layer in layers}


def has_full_vocab(config: DraftConfig) -> bool:
    """Whether the draft's vocabulary is the target's."""
    return config.draft_vocab_size == config.vocab_size


def _layer_shapes(name: str, config: DraftConfig, width: int) -> dict[str, Shape]:
    h = config.hidden_size
    i = config.intermediate_size
    attention = latent_shapes(config, config.latent, width) if config.latent else _usual_shapes(config, width)
    mlp: dict[str, Shape] = {"gate_proj": (i, h), "up_proj": (i, h), "down_proj": (h, i)}
    return {
        **{f"{name}.self_attn.{part}.weight": shape for part, shape in attention.items()},
        **{f"{name}.mlp.{part}.weight": shape for part, shape in mlp.items()},
        **{f"{name}.{norm}.weight": (h,) for norm in ("hidden_norm", "post_attention_layernorm")},
    }


def _usual_shapes(config: DraftConfig, width: int) -> dict[str, Shape]:
    q = config.query_width
    kv = config.key_width
    return {"q_proj": (q, width), "k_proj": (kv, width), "v_proj": (kv, width), "o_proj": (config.hidden_size, q)}


def latent_shapes(config: DraftConfig, latent: Latent, width: int) -> dict[str, Shape]:
    """The projections and norms of latent attention that reads ``width`` channels."""
    heads = config.num_attention_heads
    queries = heads * latent.qk_head_dim
    rank = latent.q_lora_rank
    query: dict[str, Shape] = {"q_proj": (queries, width)}
    if rank is not None:
        query = {"q_a_proj": (rank, width), "q_a_layernorm": (rank,), "q_b_proj": (queries, rank)}
    return query | {
        "kv_a_proj_with_mqa": (latent.kv_lora_rank + latent.qk_rope_head_dim, width),
        "kv_a_layernorm": (latent.kv_lora_rank,),
        "kv_b_proj": (heads * (latent.qk_nope_head_dim + latent.v_head_dim), latent.kv_lora_rank),
        "o_proj": (config.hidden_size, heads * latent.v_head_dim),
    }


def refusals(config: DraftConfig, layout: Layout, target: Mapping[str, Any] | None = None) -> list[str]:
    """Why servers of this layout cannot run this draft as it was trained; empty where they can.

    ``target`` is the target's config. That an engine knows nothing of its class is no reason here: such a server does
    not start, whatever the draft (``models/engines.py``).
    """
    if layout == "vllm":
        return []
    if layout == "speculators":
        if config.latent is not None:
            return ["speculators' decoder layer is Llama's; it has no latent attention (use --layout vllm)"]
        both = config.fc_norm and config.norm_before_fc
        return ["speculators has fc_norm or norm_before_fc, never both (use --layout vllm)"] if both else []
    if layout == "gguf":
        return _unread_by_llamacpp(config, target)
    reasons = unread_layers(config, target) + unread_window("sglang", config) + unread_latent("sglang", config, target)
    if config.own_embedding:
        reasons.append(
            "it has its own embedding, and SGLang puts the target's in its place (use --layout vllm, or train with "
            "the target's)"
        )
    if config.norm_before_residual:
        reasons.append("norm_before_residual: SGLang's residual always starts from the state before the norm")
    if layout == "sglang":
        return reasons
    if config.num_hidden_layers > 1:
        reasons.append(f"{config.num_hidden_layers} layers; servers that need the legacy layout read exactly one")
    if len(config.aux_layers) != 3:
        reasons.append(
            f"{len(config.aux_layers)} auxiliary layers; servers that need the legacy layout read exactly three"
        )
    reasons += [
        f"{flag} is of EAGLE-3.1, unknown to older servers (train with --no-{flag.replace('_', '-')})"
        for flag in EAGLE31_FLAGS
        if getattr(config, flag)
    ]
    reasons += ["its window is unknown to older servers"] if config.window is not None else []
    reasons += ["its latent attention is unknown to older servers"] if config.latent is not None else []
    return reasons + (["norm_before_fc is unknown to older servers"] if config.norm_before_fc else [])


def _unread_by_llamacpp(config: DraftConfig, target: Mapping[str, Any] | None) -> list[str]:
    """What llama.cpp's loader does not know, or passes over without a word."""
    reasons = unread_last_layer("llama.cpp", config, target) + unread_window("llama.cpp", config)
    reasons += unread_latent("llama.cpp", config, target)
    if config.norm_output:
        reasons.append(
            "norm_output: llama.cpp hands the state before the norm to the next depth (train with --serve-with "
            "llama.cpp, or --no-norm-output)"
        )
    if config.fc_norm:
        reasons.append("fc_norm: llama.cpp has no norms of single auxiliary layers (train with --no-fc-norm)")
    if config.num_hidden_layers > 1:
        reasons.append(f"{config.num_hidden_layers} layers; llama.cpp reads exactly one")
    if len(config.aux_layers) != 3:
        reasons.append(f"{len(config.aux_layers)} auxiliary layers; llama.cpp reads exactly three")
    if config.hidden_size != config.target_hidden_size and not config.own_embedding:
        reasons.append(f"it is {config.hidden_size} wide, and its target's embedding is {config.target_hidden_size}")
    kind = (config.rope_scaling or {}).get("rope_type")
    if kind is not None and kind not in KEPT:
        reasons.append(f"its RoPE ({kind}) changes with the length of a text, which a GGUF file cannot hold")
    return reasons


def serving_layout(config: DraftConfig, target: Mapping[str, Any] | None = None) -> Layout:
    """The layout for a draft as it is: SGLang's where SGLang runs it."""
    return next(layout for layout in LAYOUTS if not refusals(config, layout, target))


def config_problems(
    raw: Mapping[str, Any], layout: Layout = "sglang", target: Mapping[str, Any] | None = None
) -> list[str]:
    """Every way in which a draft's ``config.json`` differs from what SGLang needs."""
    latent = is_latent(raw)
    fixed = {
        "architectures": [sizes.ARCHITECTURE if latent else ARCHITECTURE],
        "model_type": sizes.MODEL_TYPE if latent else "llama",
        **({"rope_interleave": True} if latent else {}),
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }
    problems = [f"config: {k} is {raw.get(k)!r}, must be {v!r}" for k, v in fixed.items() if raw.get(k) != v]
    numbers = (
        *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads"),
        *((key for key in sizes.KEYS if key != "q_lora_rank") if latent else ("head_dim",)),
        *("vocab_size", "draft_vocab_size", "target_hidden_size", "max_position_embeddings", "num_hidden_layers"),
    )
    for key in numbers:
        if type(raw.get(key)) is not int or raw[key] < 1:
            problems.append(f"config: {key} is {raw.get(key)!r}, must be a positive whole number")
    for key in ("rms_norm_eps", "rope_theta"):
        if not isinstance(raw.get(key), int | float) or raw[key] <= 0:
            problems.append(f"config: {key} is {raw.get(key)!r}, must be a positive number")
    problems += [
        f"config: {key} is missing" for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key not in raw
    ]
    if raw.get("torch_dtype") not in ("float32", "bfloat16", "float16"):
        problems.append(f"config: torch_dtype is {raw.get('torch_dtype')!r}, must be float32, bfloat16 or float16")
    return problems + _aux_problems(raw, layout, target_class(target)) + _rope_problems(raw, layout)


def _aux_problems(raw: Mapping[str, Any], layout: Layout, target_name: str | None) -> list[str]:
    eagle = raw.get("eagle_config")
    if not isinstance(eagle, dict):
        return ["config: eagle_config is missing; a server would guess the auxiliary layers"]
    problems = []
    ids = eagle.get(AUX_LAYERS)
    outer = raw.get(AUX_LAYERS)
    if not isinstance(ids, list) or not ids or any(type(i) is not int or i < 0 for i in ids):
        problems.append(f"config: eagle_config.{AUX_LAYERS} is {ids!r}, must be a list of layers")
    elif target_name in SGLANG_FIRST_IS_1:
        needed = sglang_layers(_aux_layers(raw) or ids, target_name)
        if ids != needed:
            problems.append(f"config: eagle_config.{AUX_LAYERS} is {ids}, must be {needed} for {target_name} in SGLang")
    elif outer != [i + 1 for i in ids] and (outer is not None or layout == "vllm"):
        problems.append(
            f"config: {AUX_LAYERS} is {outer!r}, must be {[i + 1 for i in ids]}: vLLM counts the layer after"
        )
    if eagle.get("use_aux_hidden_state") is not True:
        problems.append("config: eagle_config.use_aux_hidden_state must be true")
    return problems


def _rope_problems(raw: Mapping[str, Any], layout: Layout) -> list[str]:
    problems = [] if "rope_scaling" in raw else ["config: rope_scaling is missing (null for plain RoPE)"]
    if layout == "legacy":
        return problems + [f"config: {key} does not belong in the legacy layout" for key in NEW_KEYS if key in raw]
    if raw.get("dtype") != raw.get("torch_dtype"):
        problems.append(f"config: dtype is {raw.get('dtype')!r} but torch_dtype is {raw.get('torch_dtype')!r}")
    rope = raw.get("rope_parameters")
    if not isinstance(rope, dict):
        return [*problems, "config: rope_parameters is missing (newer transformers read only that)"]
    if rope.get("rope_theta") != raw.get("rope_theta"):
        problems.append(
            f"config: rope_parameters.rope_theta {rope.get('rope_theta')!r} is not {raw.get('rope_theta')!r}"
        )
    old = raw.get("rope_scaling") or {"rope_type": "default"}
    if {k: v for k, v in rope.items() if k != "rope_theta"} != {k: v for k, v in old.items() if k != "rope_theta"}:
        problems.append("config: rope_parameters and rope_scaling disagree")
    return problems


def target_problems(raw: Mapping[str, Any], target: Mapping[str, Any]) -> list[str]:
    """Every way in which a draft's config does not fit its target's."""
    text = text_part(target)
    pairs = {
        "vocab_size": "vocab_size",
        "target_hidden_size": "hidden_size",
        "max_position_embeddings": "max_position_embeddings",
    }
    problems = [
        f"config: {key} is {raw.get(key)!r} but the target has {text[target_key]!r}"
        for key, target_key in pairs.items()
        if target_key in text and raw.get(key) != text[target_key]
    ]
    layers = text.get("num_hidden_layers")
    ids = _aux_layers(raw)
    if layers and any(type(i) is int and i >= layers for i in ids):
        problems.append(f"config: auxiliary layers {list(ids)} but the target has only {layers} layers")
    return problems


def _aux_layers(raw: Mapping[str, Any]) -> list[Any]:
    """The auxiliary layers that a config names; none where it names no numbers, which ``config_problems`` says."""
    try:
        return list(named_aux_layers(raw) or ())
    except (TypeError, AttributeError):
        return []


def vocab_problems(d2t: Tensor, t2d: Tensor) -> list[str]:
    """What is wrong with a draft vocabulary: ``d2t`` must be offsets to ascending target tokens, ``t2d`` their mask."""
    offsets = d2t.long()
    ids = offsets + torch.arange(len(offsets))
    marked = t2d.nonzero().flatten()
    if torch.equal(ids, marked):
        return []
    if torch.equal(offsets, marked):
        return ["d2t holds absolute target tokens; it must hold offsets (target token - draft token)"]
    problems = []
    if len(marked) != len(ids):
        problems.append(f"t2d marks {len(marked)} tokens but d2t has {len(ids)}")
    outside = ((ids < 0) | (ids >= len(t2d))).nonzero().flatten()
    if len(outside):
        problems.append(f"d2t maps {len(outside)} draft tokens outside the vocabulary (first: {int(outside[0])})")
    falls = (ids[1:] <= ids[:-1]).nonzero().flatten()
    if len(falls):
        problems.append(f"d2t does not ascend at draft token {int(falls[0]) + 1}")
    if not problems:
        wrong = int((~t2d[ids]).nonzero().flatten()[0])
        problems.append(f"d2t maps draft token {wrong} to target token {int(ids[wrong])}, which t2d does not mark")
    return problems


def tensor_problems(
    shapes: Mapping[str, Shape], tensors: Mapping[str, Tensor], *, dtype: torch.dtype | None
) -> list[str]:
    """Missing, unknown and misshapen tensors; and wrong types, where ``dtype`` says what the weights should be."""
    problems = [f"{name}: missing" for name in sorted(shapes.keys() - tensors.keys())]
    problems += [f"{name}: unknown, a server would skip it" for name in sorted(tensors.keys() - shapes.keys())]
    types = {"d2t": torch.int64, "t2d": torch.bool}
    for name in sorted(shapes.keys() & tensors.keys()):
        tensor = tensors[name]
        expected = types.get(name, dtype)
        if tuple(tensor.shape) != shapes[name]:
            problems.append(f"{name}: shape {list(tensor.shape)}, must be {list(shapes[name])}")
        if dtype is not None and tensor.dtype != expected:
            problems.append(f"{name}: type {dtype_name(tensor.dtype)}, must be {dtype_name(expected)}")
    return problems


def dtype_name(dtype: torch.dtype | None) -> str:
    """``float32`` for ``torch.float32``."""
    return str(dtype).removeprefix("torch.")
