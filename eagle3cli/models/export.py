"""From a training run to a draft folder for a server: which checkpoint, what is written, and that it works the same."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from eagle3cli.errors import ModelError
from eagle3cli.models.checkpoint import (
    EMBEDDING,
    Layout,
    check_folder,
    load_draft,
    own_embedding,
    read_config,
    save_draft,
)
from eagle3cli.models.config import DraftConfig, default_aux_layers, text_part
from eagle3cli.models.draft import Draft, rotate

ROWS = 256
"""Random rows on which logits are compared."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how far its logits are from those of the checkpoint."""

    config: DraftConfig
    notes: list[str]
    largest_change: float
    """Largest change of a logit through the type of the export, over logits' standard deviation."""
    same_proposals: float
    """Share of random rows whose best token stayed the same."""


def find_draft(path: Path) -> Path:
    """The draft folder that ``path`` means: itself, or a run's ``best/``, or a run's newest checkpoint."""
    if (path / "config.json").is_file():
        return path
    if (path / "best" / "config.json").is_file():
        return path / "best"
    checkpoints = [p for p in path.glob("checkpoints/epoch_*_step_*") if p.name.rpartition("_")[2].isdigit()]
    if checkpoints:
        return max(checkpoints, key=lambda p: int(p.name.rpartition("_")[2]))
    what = "no trained draft here" if path.exists() else "no such folder"
    fix = "give --draft-model-path: a training run, or a folder with config.json and model.safetensors"
    raise ModelError(what, where=str(path), fix=fix)


def target_of(draft_folder: Path) -> str | None:
    """The target that the run around a checkpoint was trained for, from its ``settings.toml``."""
    for folder in (draft_folder, *draft_folder.parents[:2]):
        if (folder / "settings.toml").is_file():
            raw = tomllib.loads((folder / "settings.toml").read_text(encoding="utf-8"))
            found = raw.get("target", {}).get("model_path")
            return str(found) if found else None
    return None


def export_draft(
    source: Path,
    folder: Path,
    *,
    dtype: torch.dtype,
    layout: Layout,
    target: Mapping[str, Any] | None = None,
    target_embedding: Tensor | None = None,
    aux_layers: tuple[int, ...] | None = None,
) -> Exported:
    """Write the draft in ``source`` to ``folder``, check it and compare its logits with the checkpoint's.

    ``target`` is the target's config: it supplies the context length and, where the source does not name them, the
    auxiliary layers. An embedding that the source carries is left out where it equals ``target_embedding``. Raises
    ModelError on any difference. For a folder that is whole or absent, call this from ``runtime.files.write_folder``.
    """
    text = text_part(target) if target else {}
    fallback = default_aux_layers(text["num_hidden_layers"]) if "num_hidden_layers" in text else None
    config, state = load_draft(source, aux_layers=aux_layers or fallback)
    notes = []
    named = (read_config(source).get("eagle_config") or {}).get("eagle_aux_hidden_state_layer_ids")
    if not named:
        notes.append(f"the source does not name its auxiliary layers; {list(config.aux_layers)} written")
    context = text.get("max_position_embeddings")
    if context and context != config.max_position_embeddings:
        notes.append(f"max_position_embeddings {config.max_position_embeddings} became the target's {context}")
        config = replace(config, max_position_embeddings=context)
    written = dict(state)
    embedding = own_embedding(source)
    if embedding is not None and target_embedding is not None and torch.equal(embedding, target_embedding):
        notes.append("the embedding equals the target's and was left out")
    elif embedding is not None:
        notes.append("the draft brings its own embedding")
        written[EMBEDDING] = embedding
    try:
        save_draft(folder, written, config, dtype=dtype, layout=layout)
        check_folder(folder, target=target, layout=layout)
    except ModelError as error:
        raise ModelError(error.what, where=str(source), fix=error.fix) from error
    return _compare(folder, config, state, dtype, notes)


def _compare(
    folder: Path, config: DraftConfig, state: Mapping[str, Tensor], dtype: torch.dtype, notes: list[str]
) -> Exported:
    """Load the folder again and hold its logits on random states against the checkpoint's."""
    cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    exact, rounded = _logits(config, state), _logits(config, cast)
    reloaded_config, reloaded = load_draft(folder)
    if not torch.equal(rounded, _logits(reloaded_config, reloaded)):
        raise ModelError("the folder's logits differ from the checkpoint's after loading it again", where=str(folder))
    change = float((rounded - exact).abs().max() / exact.std().clamp(min=1e-12))
    return Exported(config, notes, change, float((rounded.argmax(-1) == exact.argmax(-1)).float().mean()))


@torch.no_grad()
def _logits(config: DraftConfig, state: Mapping[str, Tensor]) -> Tensor:
    """Logits ``[R, Vd]`` of one pass over random states and embeddings, in fp32."""
    draft = Draft(config).float()
    draft.load_state_dict({name: v.float() if v.is_floating_point() else v for name, v in state.items()})
    random = torch.Generator().manual_seed(0)
    aux_RC = torch.randn(ROWS, draft.fc.in_features, generator=random)
    embedded_RH = torch.randn(ROWS, config.hidden_size, generator=random)
    hidden_RH, layer = draft.first_hidden(aux_RC), draft.midlayer
    joint = torch.cat((layer.input_layernorm(embedded_RH), layer.hidden_norm(hidden_RH)), -1)
    attention = layer.self_attn
    projections = (attention.q_proj, attention.k_proj, attention.v_proj)
    query, key, value = (p(joint).unflatten(1, (-1, config.head_dim)) for p in projections)
    turns = draft.rope(torch.arange(ROWS), joint.dtype)
    q, k, v = (x.transpose(0, 1) for x in (rotate(query, *turns), rotate(key, *turns), value))
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    logits: Tensor = draft.lm_head(draft.norm(draft.finish_layer(hidden_RH, mixed.transpose(0, 1))))
    return logits


def serve_line(target: str, folder: Path, *, steps: int) -> str:
    """The command that serves the target with this draft."""
    return (
        f"python -m sglang.launch_server --model-path {target} --speculative-algorithm EAGLE3 "
        f"--speculative-draft-model-path {folder} --speculative-num-steps {steps} --speculative-eagle-topk 1 "
        f"--speculative-num-draft-tokens {steps + 1} --host 127.0.0.1 --port 30000"
    )
