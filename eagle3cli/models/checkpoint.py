"""Draft folders in SGLang's layout: written, read back, and checked tensor by tensor.

A server skips names it does not know and leaves missing ones at random values, so nothing is left to it: every name,
shape, type and config key is checked here, and all differences are reported at once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from eagle3cli.errors import ModelError
from eagle3cli.models.config import ARCHITECTURE, EAGLE31_FLAGS, DraftConfig, text_part

Layout = Literal["sglang", "legacy"]
WEIGHTS, CONFIG = "model.safetensors", "config.json"
EMBEDDING = "embed_tokens.weight"
NEW_KEYS = ("rope_parameters", "dtype")
"""Keys of transformers 5 that a ``legacy`` folder leaves out; it says the same in the older keys."""

Shape = tuple[int, ...]

SHOWN = 30
"""Differences that an error lists; a folder with more is another kind of model."""


def expected_shapes(config: DraftConfig) -> dict[str, Shape]:
    """Name and shape of every tensor that a draft of this config has."""
    h, i, vd = config.hidden_size, config.intermediate_size, config.draft_vocab_size
    q, kv = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
    attention: dict[str, Shape] = {"q_proj": (q, 2 * h), "k_proj": (kv, 2 * h), "v_proj": (kv, 2 * h), "o_proj": (h, q)}
    mlp: dict[str, Shape] = {"gate_proj": (i, h), "up_proj": (i, h), "down_proj": (h, i)}
    return {
        **{f"midlayer.self_attn.{name}.weight": shape for name, shape in attention.items()},
        **{f"midlayer.mlp.{name}.weight": shape for name, shape in mlp.items()},
        **{f"midlayer.{name}.weight": (h,) for name in ("hidden_norm", "input_layernorm", "post_attention_layernorm")},
        **(
            {f"fc_norm.{i}.weight": (config.target_hidden_size,) for i in range(len(config.aux_layers))}
            if config.fc_norm
            else {}
        ),
        "fc.weight": (h, len(config.aux_layers) * config.target_hidden_size),
        "norm.weight": (h,),
        "lm_head.weight": (vd, h),
        "d2t": (vd,),
        "t2d": (config.vocab_size,),
    }


def save_draft(
    folder: Path,
    state: Mapping[str, Tensor],
    config: DraftConfig,
    *,
    dtype: torch.dtype = torch.bfloat16,
    layout: Layout = "sglang",
) -> None:
    """Write a draft into ``folder``, then read it back and compare it with ``state``, config and every bit.

    ``state`` has SGLang's names; floating-point tensors are cast to ``dtype``. To have the folder whole or not at all,
    call this from ``runtime.files.write_folder``. Raises ModelError with every difference.
    """
    tensors = _cast(state, dtype)
    raw = replace(config, dtype=_short(dtype)).to_sglang()
    if layout == "legacy":
        raw = {key: value for key, value in raw.items() if key not in NEW_KEYS}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    (folder / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))
    check_folder(folder, layout=layout)
    read = read_tensors(folder)
    different = [name for name, value in tensors.items() if not torch.equal(value, read[name])]
    if different:
        raise ModelError(f"reads back differently: {', '.join(different)}", where=str(folder), fix="check the disk")


def load_draft(folder: Path, *, aux_layers: tuple[int, ...] | None = None) -> tuple[DraftConfig, dict[str, Tensor]]:
    """Read a draft folder: ours, SGLang's or SpecForge's (``model.safetensors`` or ``pytorch_model.bin``).

    Returns the config and a state dict with exactly the names of :func:`expected_shapes` (an own embedding is left
    to :func:`own_embedding`). ``aux_layers`` stands in where the config does not name them. Raises ModelError with
    every missing, unknown or misshapen tensor.
    """
    raw = read_config(folder)
    try:
        config = DraftConfig.from_dict(raw, aux_layers=aux_layers)
    except ModelError as error:
        raise ModelError(error.what, where=str(folder / CONFIG), fix=error.fix) from error
    state = read_tensors(folder)
    state.pop(EMBEDDING, None)
    if config.draft_vocab_size == config.vocab_size:
        state.setdefault("d2t", torch.zeros(config.vocab_size, dtype=torch.long))
        state.setdefault("t2d", torch.ones(config.vocab_size, dtype=torch.bool))
    problems = _tensor_problems(expected_shapes(config), state, dtype=None)
    if not problems:
        state["d2t"], state["t2d"] = state["d2t"].long(), state["t2d"].bool()
        problems = vocab_problems(state["d2t"], state["t2d"])
    _raise(problems, folder)
    return config, state


def own_embedding(folder: Path) -> Tensor | None:
    """The embedding ``[V, H]`` that a draft brings along, or None where it uses its target's."""
    return read_tensors(folder).get(EMBEDDING)


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a model folder. Raises ModelError where there is none."""
    path = folder / CONFIG
    if not path.is_file():
        raise ModelError("no config.json: not a model folder", where=str(folder), fix="give the folder of a draft")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ModelError(f"not valid JSON: {error}", where=str(path)) from error
    if not isinstance(raw, dict):
        raise ModelError("not a JSON object", where=str(path))
    return raw


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a draft folder, as stored. Nothing is unpickled beyond plain tensors."""
    file, old = folder / WEIGHTS, folder / "pytorch_model.bin"
    try:
        if file.is_file():
            with safe_open(file, "pt") as f:
                return {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a dict)
        if old.is_file():
            return cast(dict[str, Tensor], dict(torch.load(old, map_location="cpu", weights_only=True)))
    except UnpicklingError as error:
        fix = "ask its author for a model.safetensors"
        raise ModelError("holds more than plain tensors; nothing else is unpickled", where=str(old), fix=fix) from error
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError) as error:
        broken = file if file.is_file() else old
        raise ModelError(
            f"cannot be read: {error}", where=str(broken), fix="the file is damaged; copy it again"
        ) from error
    raise ModelError(f"no {WEIGHTS} (and no pytorch_model.bin)", where=str(folder), fix="give the folder of a draft")


def check_folder(
    folder: Path,
    *,
    target: Mapping[str, Any] | None = None,
    layout: Layout = "sglang",
) -> DraftConfig:
    """Check a folder against what SGLang's EAGLE-3 loader needs; returns its config.

    ``target`` (the target's config) adds the checks against the target. Raises one ModelError that lists every
    difference.
    """
    raw = read_config(folder)
    problems = config_problems(raw, layout)
    if target is not None:
        problems += _target_problems(raw, target)
    others = sorted(f.name for f in folder.glob("*.safetensors") if f.name != WEIGHTS)
    problems += [f"{name}: SGLang would read this file as weights too" for name in others]
    try:
        config = DraftConfig.from_dict(raw, aux_layers=(0, 1, 2))
        tensors = read_tensors(folder)
    except ModelError as error:
        _raise([*problems, str(error)], folder)
        raise
    optional = {EMBEDDING: (config.vocab_size, config.hidden_size)} if EMBEDDING in tensors else {}
    dtype = getattr(torch, str(raw.get("torch_dtype")), None)
    problems += _tensor_problems(expected_shapes(config) | optional, tensors, dtype=dtype)
    d2t, t2d = tensors.get("d2t"), tensors.get("t2d")
    if d2t is not None and t2d is not None:
        problems += vocab_problems(d2t, t2d)
    _raise(problems, folder)
    return config


def config_problems(raw: Mapping[str, Any], layout: Layout = "sglang") -> list[str]:
    """Every way in which a draft's ``config.json`` differs from what SGLang needs."""
    fixed = {
        "architectures": [ARCHITECTURE],
        "model_type": "llama",
        "num_hidden_layers": 1,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
    }
    problems = [f"config: {k} is {raw.get(k)!r}, must be {v!r}" for k, v in fixed.items() if raw.get(k) != v]
    sizes = (
        *("hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim"),
        *("vocab_size", "draft_vocab_size", "target_hidden_size", "max_position_embeddings"),
    )
    for key in sizes:
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
    return problems + _aux_problems(raw, layout) + _rope_problems(raw, layout)


def _aux_problems(raw: Mapping[str, Any], layout: Layout) -> list[str]:
    eagle = raw.get("eagle_config")
    if not isinstance(eagle, dict):
        return ["config: eagle_config is missing; a server would guess the auxiliary layers"]
    problems = []
    ids = eagle.get("eagle_aux_hidden_state_layer_ids")
    if not isinstance(ids, list) or not ids or any(type(i) is not int or i < 0 for i in ids):
        problems.append(f"config: eagle_config.eagle_aux_hidden_state_layer_ids is {ids!r}, must be a list of layers")
    elif layout == "legacy" and len(ids) != 3:
        problems.append(f"config: {len(ids)} auxiliary layers; servers that need the legacy layout read exactly three")
    if layout == "legacy":
        problems += [
            f"config: {flag} is of EAGLE-3.1, unknown to older servers (train with --no-{flag.replace('_', '-')})"
            for flag in EAGLE31_FLAGS
            if raw.get(flag)
        ]
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


def _target_problems(raw: Mapping[str, Any], target: Mapping[str, Any]) -> list[str]:
    text = text_part(target)
    pairs = {
        "vocab_size": "vocab_size",
        "target_hidden_size": "hidden_size",
        "max_position_embeddings": "max_position_embeddings",
    }
    problems = [
        f"config: {ours} is {raw.get(ours)!r} but the target has {text[theirs]!r}"
        for ours, theirs in pairs.items()
        if theirs in text and raw.get(ours) != text[theirs]
    ]
    ids = (raw.get("eagle_config") or {}).get("eagle_aux_hidden_state_layer_ids") or []
    layers = text.get("num_hidden_layers")
    if layers and any(type(i) is int and i >= layers for i in ids):
        problems.append(f"config: auxiliary layers {ids} but the target has only {layers} layers")
    return problems


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


def _tensor_problems(
    shapes: Mapping[str, Shape], tensors: Mapping[str, Tensor], *, dtype: torch.dtype | None
) -> list[str]:
    """Missing, unknown and misshapen tensors; and wrong types, where ``dtype`` says what the weights should be."""
    problems = [f"{name}: missing" for name in sorted(shapes.keys() - tensors.keys())]
    problems += [f"{name}: unknown, a server would skip it" for name in sorted(tensors.keys() - shapes.keys())]
    types = {"d2t": torch.int64, "t2d": torch.bool}
    for name in sorted(shapes.keys() & tensors.keys()):
        tensor, wanted = tensors[name], types.get(name, dtype)
        if tuple(tensor.shape) != shapes[name]:
            problems.append(f"{name}: shape {list(tensor.shape)}, must be {list(shapes[name])}")
        if dtype is not None and tensor.dtype != wanted:
            problems.append(f"{name}: type {_short(tensor.dtype)}, must be {_short(wanted)}")
    return problems


def _short(dtype: torch.dtype | None) -> str:
    return str(dtype).removeprefix("torch.")


def _cast(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Contiguous CPU copies in the type of the folder. Raises ModelError where a value does not fit the type."""
    tensors = {}
    for name, value in state.items():
        to = value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype).contiguous()
        if to.is_floating_point() and not bool(torch.isfinite(to).all()):
            count = int((~torch.isfinite(to)).sum())
            fix = "use bfloat16 or float32, or an earlier checkpoint"
            raise ModelError(f"{name}: {count} values are not finite as {_short(dtype)}", fix=fix)
        tensors[name] = to
    return tensors


def _raise(problems: list[str], folder: Path) -> None:
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        listed = "\n".join(f"- {p}" for p in [*problems[:SHOWN], *more])
        raise ModelError(
            f"not a draft that SGLang loads as meant; {len(problems)} differences:\n{listed}", where=str(folder)
        )
