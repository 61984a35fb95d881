"""From a training run to a draft folder for a server: which checkpoint, what is written, and that it works the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eagle3cli.errors import ModelError
from eagle3cli.models.aux_layers import default_aux_layers, text_part
from eagle3cli.models.checkpoint import check_folder, load_draft, read_config, save_draft
from eagle3cli.models.config import DraftConfig, named_aux_layers
from eagle3cli.models.contract import (
    EMBEDDING,
    LAYOUTS,
    LEAST_LAYERS,
    Layout,
    dtype_name,
    refusals,
    serving_layout,
)
from eagle3cli.models.draft import Draft
from eagle3cli.models.engines import (
    enough_layers,
    has_shifted_layers,
    layers_as_sglang_reads,
    target_class,
    unread_latent,
    unread_window,
)
from eagle3cli.models.gguf.draft import file_name, read_draft, write_draft
from eagle3cli.models.gguf.file import OUTTYPES, Field, Outtype
from eagle3cli.models.speculators import Verifier

ROWS = 256
"""Random rows on which logits are compared."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how far its logits are from those of the checkpoint."""

    config: DraftConfig
    layout: Layout
    notes: list[str]
    largest_change: float
    """Largest change of a logit through the type of the export, over logits' standard deviation."""
    same_proposals: float
    """Share of random rows whose best token stayed the same."""


def export_draft(
    source: Path,
    folder: Path,
    *,
    dtype: torch.dtype | None,
    layout: Layout | None,
    target: Mapping[str, Any] | None = None,
    target_embedding: Tensor | None = None,
    aux_layers: tuple[int, ...] | None = None,
    verifier: Verifier | None = None,
    outtype: Outtype | None = None,
    vocabulary: Sequence[Field] = (),
) -> Exported:
    """Write the draft in ``source`` to ``folder``, check it and compare its logits with the source's.

    ``target`` is the target's config: it supplies the context length and, where the source does not name them, the
    auxiliary layers. An embedding that the source carries is left out where it equals ``target_embedding``. ``dtype``
    None is the source's own, ``layout`` None the first one whose servers can run the draft, ``verifier`` what the
    speculators layout says of the target. The gguf layout is one file of ``outtype`` (None: of ``dtype``) with
    ``vocabulary``, the target's tokenizer, inside. Raises ModelError on any difference, and for a draft that the layout
    cannot hold. For a folder that is whole or absent, call this from ``runtime.files.write_folder``.
    """
    text = text_part(target) if target else {}
    fallback = default_aux_layers(text["num_hidden_layers"]) if "num_hidden_layers" in text else None
    config, state = load_draft(source, aux_layers=aux_layers or fallback, target=target)
    notes = []
    if named_aux_layers(read_config(source)) is None:
        notes.append(f"the source does not name its auxiliary layers; {list(config.aux_layers)} written")
    if layers_as_sglang_reads(read_config(source), target):
        counted = f"SGLang's {target_class(target)} counts the layers whose inputs are read"
        notes.append(f"{counted}: the source's are the outputs of {list(config.aux_layers)}")
    context = text.get("max_position_embeddings")
    if context and context != config.max_position_embeddings:
        notes.append(f"max_position_embeddings {config.max_position_embeddings} became the target's {context}")
        config = replace(config, max_position_embeddings=context)
    embedding = state.get(EMBEDDING)
    if embedding is not None and target_embedding is not None:
        if torch.equal(embedding, target_embedding.to(embedding.dtype)):
            notes.append("the embedding equals the target's and was left out")
            config = replace(config, own_embedding=False)
            del state[EMBEDDING]
        else:
            notes.append("the draft brings its own embedding")
    if layout is None:
        layout = serving_layout(config, target)
    elif layout in ("sglang", "legacy", "gguf"):
        layers = enough_layers(config, LEAST_LAYERS.get(layout, 1), text.get("num_hidden_layers"))
        if layers != config.aux_layers:
            added = sorted(set(layers) - set(config.aux_layers))
            why = "llama.cpp reads three" if layout == "gguf" else "which SGLang skips otherwise"
            notes.append(f"auxiliary layers {added} were added with zeros in fc, {why}")
            config, state = _with_layers(config, state, layers)
    _refuse(config, layout, source, target, compared=target_embedding is not None)
    if has_shifted_layers(config.aux_layers, target_class(target)):
        notes.append(f"SGLang's {target_class(target)} counts the layers whose inputs are read; written so for SGLang")
    dtype = dtype or state["fc.weight"].dtype
    config = replace(config, dtype=dtype_name(dtype))
    if layout == "gguf":
        return _export_gguf(folder, config, state, outtype or OUTTYPES[dtype], vocabulary, notes)
    try:
        save_draft(folder, state, config, dtype=dtype, layout=layout, verifier=verifier, target=target)
        check_folder(folder, target=target, layout=layout)
    except ModelError as error:
        raise ModelError(error.code, error.message, where=str(source), fix=error.fix) from error
    return _compare(folder, config, layout, state, dtype, notes)


def _export_gguf(
    folder: Path,
    config: DraftConfig,
    state: dict[str, Tensor],
    outtype: Outtype,
    vocabulary: Sequence[Field],
    notes: list[str],
) -> Exported:
    """The draft as one file in ``folder``, read back and compared with the checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / file_name(outtype)
    write_draft(path, state, config, outtype=outtype, vocabulary=vocabulary)
    _, reloaded = read_draft(path)
    return _change(config, "gguf", notes, exact=_logits(config, state), rounded=_logits(config, reloaded))


def _with_layers(
    config: DraftConfig, state: dict[str, Tensor], layers: tuple[int, ...]
) -> tuple[DraftConfig, dict[str, Tensor]]:
    """The same draft with more auxiliary layers: zeros in ``fc`` for those that it has not read before."""
    blocks = dict(zip(config.aux_layers, state["fc.weight"].chunk(len(config.aux_layers), 1), strict=True))
    empty = torch.zeros_like(next(iter(blocks.values())))
    state = {**state, "fc.weight": torch.cat([blocks.get(layer, empty) for layer in layers], 1)}
    if config.fc_norm:
        norms = {layer: state.pop(f"fc_norm.{i}.weight") for i, layer in enumerate(config.aux_layers)}
        one = torch.ones_like(next(iter(norms.values())))
        state |= {f"fc_norm.{i}.weight": norms.get(layer, one) for i, layer in enumerate(layers)}
    return replace(config, aux_layers=layers), state


def _refuse(
    config: DraftConfig, layout: Layout, source: Path, target: Mapping[str, Any] | None, *, compared: bool
) -> None:
    reasons = refusals(config, layout, target)
    if not reasons:
        return
    other = [name for name in LAYOUTS if not refusals(config, name, target)]
    fix = f"use --layout {other[0]}"
    if other[0] == "vllm" and unread_window("vllm", config) + unread_latent("vllm", config, target):
        fix += " for eagle3 bench --engine local: no server runs it"
    if config.own_embedding and not compared:
        fix += ", or give --target-model-path: an embedding that equals the target's is left out"
    listed = "".join(f"\n- {reason}" for reason in reasons)
    raise ModelError(
        "unservable-draft",
        f"the {layout} layout cannot serve this draft as it was trained:{listed}",
        where=str(source),
        fix=fix,
    )


def _compare(
    folder: Path,
    config: DraftConfig,
    layout: Layout,
    state: Mapping[str, Tensor],
    dtype: torch.dtype,
    notes: list[str],
) -> Exported:
    """Load the folder again and hold its logits on random states against the checkpoint's."""
    cast = {name: value.to(dtype) if value.is_floating_point() else value for name, value in state.items()}
    exact = _logits(config, state)
    rounded = _logits(config, cast)
    reloaded_config, reloaded = load_draft(folder)
    if not torch.equal(rounded, _logits(reloaded_config, reloaded)):
        raise ModelError(
            "read-back-differs",
            "the folder's logits differ from the checkpoint's after loading it again",
            where=str(folder),
        )
    return _change(config, layout, notes, exact=exact, rounded=rounded)


def _change(config: DraftConfig, layout: Layout, notes: list[str], *, exact: Tensor, rounded: Tensor) -> Exported:
    """What the type of the export did to the logits ``[S, W]``."""
    change = float((rounded - exact).abs().max() / exact.std().clamp(min=1e-12))
    return Exported(config, layout, notes, change, float((rounded.argmax(-1) == exact.argmax(-1)).float().mean()))


@torch.no_grad()
def _logits(config: DraftConfig, state: Mapping[str, Tensor]) -> Tensor:
    """Logits ``[S, W]`` of one pass over random states and embeddings, in fp32."""
    draft = Draft(config).float()
    draft.load_state_dict({name: v.float() if v.is_floating_point() else v for name, v in state.items()})
    random = torch.Generator().manual_seed(0)
    aux_SC = torch.randn(ROWS, draft.fc.in_features, generator=random)
    embedding_SH = torch.randn(ROWS, config.hidden_size, generator=random)
    logits_SW, _ = draft(torch.arange(ROWS), draft.first_hidden(aux_SC), embedding_SH)
    result: Tensor = logits_SW
    return result
