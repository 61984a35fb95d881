"""What a run trains on: its batches, live or from disk, and the target's weights that training reads."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eagle3cli.backends.batches.batch import BatchSource
from eagle3cli.backends.batches.online import online_source
from eagle3cli.backends.batches.store import StoreSource
from eagle3cli.backends.roles.message import Shape
from eagle3cli.backends.roles.source import RemoteSource, TargetRanks
from eagle3cli.backends.target.auto import open_target, shown_images
from eagle3cli.backends.target.head import fingerprint, read_target_tensors
from eagle3cli.backends.target.hf import pick_device, pick_dtype, read_target_config
from eagle3cli.backends.target.logits import Head, make_head
from eagle3cli.data.hidden_states.store import Store, check_aux_layers, open_stores
from eagle3cli.data.tokens.cache import TokenCache, open_or_build
from eagle3cli.data.tokens.vocab import VocabMapping
from eagle3cli.errors import DataError, UsageError
from eagle3cli.models.aux_layers import text_part
from eagle3cli.models.config import DraftConfig, read_draft_config
from eagle3cli.models.serve import check_served, with_options
from eagle3cli.runtime.distributed import SINGLE_PROCESS, Ranks
from eagle3cli.runtime.report import Reporter
from eagle3cli.settings.models import TargetSettings
from eagle3cli.settings.tables import Settings
from eagle3cli.training.data_summary import summarize_cache, summarize_stores
from eagle3cli.training.warm_start import warm_start_config


@dataclass(frozen=True)
class Inputs:
    """Where a run's batches come from, and the target weights that training reads."""

    source: BatchSource
    eval_source: BatchSource | None
    vocab: VocabMapping
    config: DraftConfig
    head: Head
    weights: dict[str, Tensor]
    """``embedding``, ``final_norm`` and, where the target has them, the last layer's MLP."""
    data_key: str
    facts: dict[str, Any]
    """Counts of the data, for the report."""


TargetShare = Callable[[], float | None]
"""Says, once the rows are there, which share of a GPU a live target may take; None leaves it to its backend."""


def online(
    settings: Settings, report: Reporter, ranks: Ranks = SINGLE_PROCESS, target_share: TargetShare | None = None
) -> Inputs:
    """Inputs of a run whose target runs live."""
    raw = read_target_config(settings.target)
    config = draft_config_of(settings, raw)
    cached = _cached(settings, config, report, ranks)
    share = settings.target.mem_fraction_static if target_share is None else target_share()
    chosen = shown_images(settings.target, (cached.train, cached.eval))
    target = open_target(chosen.model_copy(update={"mem_fraction_static": share}), report, config.aux_layers, ranks)
    embedding_VH = target.embedding_VH
    weights = _last_layer(settings.target, raw, embedding_VH.device, embedding_VH.dtype) | {"embedding": embedding_VH}
    evaluation = online_source(target, cached.eval) if cached.eval is not None and len(cached.eval) else None
    return Inputs(
        online_source(target, cached.train),
        evaluation,
        cached.vocab,
        config,
        target.head,
        weights,
        cached.folder.name,
        summarize_cache(cached),
    )


def from_target_ranks(settings: Settings, report: Reporter, ranks: Ranks) -> Inputs:
    """Inputs of a draft rank whose target runs live on ranks of its own."""
    raw = read_target_config(settings.target)
    config = draft_config_of(settings, raw)
    cached = _cached(settings, config, report, ranks)
    shown_images(settings.target, (cached.train, cached.eval), on_ranks=True)
    device = pick_device(settings.target.device)
    shape = state_shape(settings, config, device, raw)
    weights = _last_layer(settings.target, raw, device, shape.dtype)
    assert ranks.job is not None
    target = TargetRanks(ranks, shape, device, ranks.job.targets // settings.target.tp_size)
    target.begin(cached.train)
    return Inputs(
        RemoteSource(target, cached.train),
        RemoteSource(target, cached.eval) if cached.eval is not None and len(cached.eval) else None,
        cached.vocab,
        config,
        make_head(raw, weights["head"], weights.get("head_bias")),
        weights,
        cached.folder.name,
        summarize_cache(cached),
    )


def state_shape(settings: Settings, config: DraftConfig, device: torch.device, raw: dict[str, Any]) -> Shape:
    """What the two sides of a job know of the states that travel between them."""
    hidden = int(text_part(raw)["hidden_size"])
    dtype = pick_dtype(settings.target.dtype, device, raw)
    return Shape(config.aux_width // hidden, hidden, dtype, settings.launch.transfer_encoding)


def _cached(settings: Settings, config: DraftConfig, report: Reporter, ranks: Ranks) -> TokenCache:
    """The tokenized rows of a live target. Raises where none can be trained on."""
    cached = open_or_build(settings, config.draft_vocab_size, config.vocab_size, report, ranks)
    _not_empty(len(cached.train), str(settings.data.train_path))
    if not cached.summary["train"]["loss_tokens"]:
        fix = "look at the rows with eagle3 view; replies are made by eagle3 regenerate"
        raise DataError(
            "no-reply-tokens", "no row holds a reply to train on", where=str(settings.data.train_path), fix=fix
        )
    return cached


def offline(settings: Settings, report: Reporter) -> Inputs:
    """Inputs of a run that reads hidden states from disk: stores, the target's folder and a draft config."""
    paths = train_states(settings)
    store = open_stores(paths)
    path = paths[0]
    _not_empty(len(store), str(path))
    eval_path = held_out_states(settings)
    raw = read_target_config(settings.target)
    config = draft_config_of(settings, raw)
    check_aux_layers(store.meta, config.aux_layers, path, "use --aux-layers of the store, or capture again")
    asked = settings.draft.vocab_size
    if asked is not None and min(asked, config.vocab_size) != store.vocab.size:
        what = f"its vocabulary has {store.vocab.size} tokens, --draft-vocab-size asks for {asked}"
        raise UsageError(
            "store-unfit", what, where=str(path), fix="leave --draft-vocab-size out, or capture again with it"
        )
    if settings.draft.init != "draft":
        config = replace(config, draft_vocab_size=store.vocab.size)  # the store's vocabulary decides the draft's
    device = pick_device(settings.target.device)
    weights = _last_layer(settings.target, raw, device, torch.float32 if device.type == "cpu" else torch.bfloat16)
    if weights["head"].shape != (store.meta.vocab_size, store.meta.hidden_size):
        raise UsageError(
            "store-unfit",
            f"the store was captured from a target with vocab x hidden {store.meta.vocab_size} x "
            f"{store.meta.hidden_size}; this one has {tuple(weights['head'].shape)}",
            where=str(path),
            fix=f"give the target it came from ({store.meta.target})",
        )
    held_out = Store(eval_path) if eval_path is not None else None
    now = fingerprint(settings.target.model_path, revision=settings.target.revision)
    for each in filter(None, (*store.stores, held_out)):
        each.require_target(now)
    evaluation = StoreSource(held_out, device=device) if held_out is not None else None
    report.info(f"hidden states of {len(store)} rows, {sum(store.lengths)} tokens from {', '.join(map(str, paths))}")
    head = make_head(raw, weights["head"], weights.get("head_bias"))
    facts = summarize_stores(store, paths, held_out, settings.data.cache_dir / "processed_dataset")
    return Inputs(StoreSource(store, device=device), evaluation, store.vocab, config, head, weights, store.key, facts)


def train_states(settings: Settings) -> tuple[Path, ...]:
    """The stores that offline training reads."""
    return settings.data.train_hidden_states_path or (settings.hidden_states.output_path / "train",)


def held_out_states(settings: Settings) -> Path | None:
    """The store that offline training evaluates on: the one that is named, or one beside the training store."""
    beside = train_states(settings)[0].parent / "eval"
    return settings.data.eval_hidden_states_path or (beside if (beside / "manifest.json").exists() else None)


def draft_config_of(settings: Settings, raw: dict[str, Any]) -> DraftConfig:
    """The config of the draft that these settings mean for the target with the config ``raw``."""
    draft = settings.draft
    if draft.init == "draft":
        config = warm_start_config(settings, raw)
        check_served(config, raw, draft.serve_with, backend=settings.target.backend)
        return config
    config = read_draft_config(draft.config, raw, draft_vocab_size=draft.vocab_size, aux_layers=draft.aux_layers)
    config = with_options(config, draft)
    check_served(config, raw, draft.serve_with, backend=settings.target.backend)
    return config


def _last_layer(
    target: TargetSettings, raw: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    last = int(text_part(raw)["num_hidden_layers"]) - 1
    weights = read_target_tensors(target.model_path, last, revision=target.revision)
    return {name: value.to(device, dtype) for name, value in weights.items()}


def _not_empty(rows: int, where: str) -> None:
    if not rows:
        raise UsageError(
            "no-rows", "no rows to train on", where=where, fix="look at the summary of eagle3 cache: all were rejected"
        )
