"""Draft folders: written for servers, read back, and checked tensor by tensor.

A server skips names it does not know and leaves missing ones at random values, so nothing is left to it: every name,
shape, type and config key is checked here, and all differences are reported at once. What they must be stands in
``models/contract.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from eagle3cli.errors import ModelError
from eagle3cli.models.config import AUX_LAYERS, COUNTED_FOR, DraftConfig
from eagle3cli.models.contract import (
    EMBEDDING,
    NEW_KEYS,
    Layout,
    config_problems,
    dtype_name,
    expected_shapes,
    folder_shapes,
    has_full_vocab,
    refusals,
    renamed_copies,
    serving_layout,
    target_problems,
    tensor_problems,
    vocab_problems,
)
from eagle3cli.models.converters import convert_config, convert_tensors
from eagle3cli.models.engines import layers_as_sglang_reads, sglang_layers, target_class
from eagle3cli.models.files import DAMAGED, INDEX, WEIGHTS, open_safetensors, read_json_object, read_weight_index
from eagle3cli.models.speculators import Verifier, renamed, speculators_problems, to_speculators

CONFIG = "config.json"
PICKLED = "pytorch_model.bin"

SHOWN = 30
"""Differences that an error lists; a folder with more is another kind of model."""


def save_draft(
    folder: Path,
    state: Mapping[str, Tensor],
    config: DraftConfig,
    *,
    dtype: torch.dtype = torch.bfloat16,
    layout: Layout | None = None,
    verifier: Verifier | None = None,
    target: Mapping[str, Any] | None = None,
) -> None:
    """Write a draft into ``folder``, then read it back and compare it with ``state``, config and every bit.

    ``state`` has the names of :func:`expected_shapes`; floating-point tensors are cast to ``dtype``. ``layout`` None is
    the first one whose servers can run this draft; ``verifier`` is the target that the speculators layout names.
    ``target`` is the target's config, whose class says how SGLang counts the auxiliary layers. To have the folder whole
    or not at all, call this from ``runtime.files.write_folder``. Raises ModelError with every difference.
    """
    layout = layout or serving_layout(config, target)
    written = replace(config, dtype=dtype_name(dtype))
    raw, tensors = _folder_content(written, _cast(state, dtype), layout, verifier, target_class(target))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).write_text(json.dumps(raw, indent=1) + "\n", encoding="utf-8")
    (folder / WEIGHTS).write_bytes(save(tensors, metadata={"format": "pt"}))
    check_folder(folder, target=target, layout=layout)
    read = read_tensors(folder)
    different = [name for name, value in tensors.items() if not torch.equal(value, read[name])]
    if different:
        raise ModelError(
            "read-back-differs",
            f"reads back differently: {', '.join(different)}",
            where=str(folder),
            fix="check the disk",
        )


def _folder_content(
    config: DraftConfig,
    tensors: dict[str, Tensor],
    layout: Layout,
    verifier: Verifier | None,
    target_name: str | None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The config and the tensors of a folder in this layout."""
    if has_full_vocab(config):
        tensors = {name: value for name, value in tensors.items() if name not in ("d2t", "t2d")}
    if layout == "speculators":
        if verifier is None:
            fix = "give --target-model-path: a folder, or the hub id that servers load it from"
            raise ModelError(
                "missing-target-name",
                "a draft in the format of speculators names its target, which is not known",
                fix=fix,
            )
        return to_speculators(config, verifier), renamed(tensors)
    copies = {alias: tensors[name].clone() for name, alias in renamed_copies(config).items()}
    raw = config.to_sglang()
    numbers = sglang_layers(config.aux_layers, target_name)
    if numbers != list(config.aux_layers):
        raw["eagle_config"][AUX_LAYERS] = numbers
        raw[COUNTED_FOR] = [target_name]
    if layout == "legacy":
        raw = {key: value for key, value in raw.items() if key not in NEW_KEYS}
    return raw, tensors | copies


def load_draft(
    folder: Path, *, aux_layers: tuple[int, ...] | None = None, target: Mapping[str, Any] | None = None
) -> tuple[DraftConfig, dict[str, Tensor]]:
    """Read a draft folder: ours, SGLang's, vLLM's, SpecForge's, EAGLE's or speculators'.

    Returns the config and a state dict with exactly the names of :func:`expected_shapes`. ``aux_layers`` stands in
    where the config does not name them; by the class of ``target`` (the target's config) SGLang counts them in a way of
    its own. Raises ModelError with every missing, unknown or misshapen tensor.
    """
    raw = read_config(folder)
    tensors = read_tensors(folder)
    converted = _converted(raw, folder)
    try:
        state = convert_tensors(raw, tensors)
        config = DraftConfig.from_dict(converted, aux_layers=aux_layers)
        config = replace(config, aux_layers=layers_as_sglang_reads(raw, target) or config.aux_layers)
    except ModelError as error:
        raise ModelError(error.code, error.message, where=str(folder / CONFIG), fix=error.fix) from error
    config = replace(config, own_embedding=EMBEDDING in state)
    for name, alias in renamed_copies(config).items():
        copy = state.pop(alias, None)
        if copy is None:
            continue
        kept = state.setdefault(name, copy)
        if kept is not copy and not torch.equal(kept, copy):
            what = f"{name} and {alias} differ: SGLang would read the one and vLLM the other"
            raise ModelError("draft-config", what, where=str(folder))
    if has_full_vocab(config):
        state.setdefault("d2t", torch.zeros(config.vocab_size, dtype=torch.long))
        state.setdefault("t2d", torch.ones(config.vocab_size, dtype=torch.bool))
    problems = tensor_problems(expected_shapes(config), state, dtype=None)
    if not problems:
        state["d2t"] = state["d2t"].long()
        state["t2d"] = state["t2d"].bool()
        problems = vocab_problems(state["d2t"], state["t2d"])
    _raise(problems, folder)
    return config, state


def read_config(folder: Path) -> dict[str, Any]:
    """The ``config.json`` of a model folder. Raises ModelError where there is none."""
    path = folder / CONFIG
    if not path.is_file():
        raise ModelError(
            "not-a-draft", "no config.json: not a model folder", where=str(folder), fix="give the folder of a draft"
        )
    return read_json_object(path)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a draft folder, as stored. Nothing is unpickled beyond plain tensors."""
    path = folder / PICKLED
    files = _weight_files(folder)
    if not files and not path.is_file():
        raise ModelError(
            "no-weights", f"no {WEIGHTS} (and no {PICKLED})", where=str(folder), fix="give the folder of a draft"
        )
    tensors: dict[str, Tensor] = {}
    try:
        for path in files:
            with open_safetensors(path) as f:
                tensors |= {name: f.get_tensor(name) for name in f.keys()}  # noqa: SIM118 (not a dict)
        return tensors if files else dict(torch.load(path, map_location="cpu", weights_only=True))
    except UnpicklingError as error:
        fix = "ask its author for a model.safetensors"
        raise ModelError(
            "pickle", "holds more than plain tensors; nothing else is unpickled", where=str(path), fix=fix
        ) from error
    except (SafetensorError, RuntimeError, OSError, EOFError, ValueError) as error:
        raise ModelError("damaged-file", f"cannot be read: {error}", where=str(path), fix=DAMAGED) from error


def has_embedding(folder: Path) -> bool:
    """Whether a draft folder brings an embedding along."""
    return any(name.removeprefix("model.") == EMBEDDING for name in read_tensors(folder))


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files: one, or those that an index lists."""
    if (folder / INDEX).is_file():
        return [folder / name for name in sorted(set(read_weight_index(folder / INDEX).values()))]
    return [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else []


def check_folder(
    folder: Path,
    *,
    target: Mapping[str, Any] | None = None,
    layout: Layout = "sglang",
) -> DraftConfig:
    """Check a folder against what the servers of a layout need; returns its config.

    ``target`` (the target's config) adds the checks against the target. Raises one ModelError that lists every
    difference.
    """
    raw = read_config(folder)
    problems = speculators_problems(raw) if layout == "speculators" else config_problems(raw, layout, target)
    if layout == "speculators":
        raw = _converted(raw, folder)
    if target is not None:
        problems += target_problems(raw, target)
    others = sorted(f.name for f in folder.glob("*.safetensors") if f.name != WEIGHTS)
    problems += [f"{name}: a server would read this file as weights too" for name in others]
    try:
        config = DraftConfig.from_dict(raw, aux_layers=(0, 1, 2))
        tensors = read_tensors(folder)
    except ModelError as error:
        _raise([*problems, str(error)], folder)
        raise
    config = replace(config, own_embedding=EMBEDDING in tensors)
    problems += [f"the {layout} layout cannot hold this draft: {reason}" for reason in refusals(config, layout, target)]
    dtype = getattr(torch, str(raw.get("torch_dtype")), None)
    problems += tensor_problems(folder_shapes(config, layout), tensors, dtype=dtype)
    if "d2t" in tensors and "t2d" in tensors:
        problems += vocab_problems(tensors["d2t"], tensors["t2d"])
    _raise(problems, folder)
    return config


def _converted(raw: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    try:
        return convert_config(raw)
    except ModelError as error:
        raise ModelError(error.code, error.message, where=str(folder / CONFIG), fix=error.fix) from error


def _cast(state: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """Contiguous CPU copies in the type of the folder. Raises ModelError where a value does not fit the type."""
    tensors = {}
    for name, value in state.items():
        to = value.detach().to("cpu", dtype if value.is_floating_point() else value.dtype).contiguous()
        if to.is_floating_point() and not bool(torch.isfinite(to).all()):
            count = int((~torch.isfinite(to)).sum())
            fix = "use bfloat16 or float32, or an earlier checkpoint"
            raise ModelError(
                "weights-not-finite", f"{name}: {count} values are not finite as {dtype_name(dtype)}", fix=fix
            )
        tensors[name] = to
    return tensors


def _raise(problems: list[str], folder: Path) -> None:
    if problems:
        more = [f"and {len(problems) - SHOWN} more"] if len(problems) > SHOWN else []
        listed = "\n".join(f"- {p}" for p in [*problems[:SHOWN], *more])
        raise ModelError(
            "unservable-draft",
            f"not a draft that a server loads as meant; {len(problems)} differences:\n{listed}",
            where=str(folder),
        )
