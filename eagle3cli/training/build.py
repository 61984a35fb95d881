"""Puts a training run together from settings, in the order in which data pass through its parts."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eagle3cli.backends.batches.batch import BatchSource
from eagle3cli.backends.batches.online import OnlineSource
from eagle3cli.backends.batches.prefetch import read_ahead
from eagle3cli.backends.batches.store import StoreSource
from eagle3cli.backends.target.auto import open_target
from eagle3cli.backends.target.group import check_groups
from eagle3cli.backends.target.head import fingerprint, read_target_tensors
from eagle3cli.backends.target.hf import pick_device, read_target_config
from eagle3cli.backends.target.logits import Head, make_head
from eagle3cli.data.hidden_states.store import Store, check_aux_layers, open_stores
from eagle3cli.data.tokens.cache import open_or_build
from eagle3cli.data.tokens.vocab import VocabMapping
from eagle3cli.errors import DataError, UsageError
from eagle3cli.models.config import DraftConfig, read_draft_config, text_part
from eagle3cli.models.draft import Draft
from eagle3cli.runtime.devices import compute_type, set_threads
from eagle3cli.runtime.distributed import SINGLE_PROCESS, Ranks
from eagle3cli.runtime.provenance import changes, digest_json
from eagle3cli.runtime.report import Reporter
from eagle3cli.settings.models import TargetSettings
from eagle3cli.settings.tables import Settings
from eagle3cli.settings.toml import to_toml
from eagle3cli.settings.training import TrainSettings
from eagle3cli.training.checkpoint.load import Progress, newest_sound, resume
from eagle3cli.training.checkpoint.save import Saver
from eagle3cli.training.data_summary import summarize_cache, summarize_stores
from eagle3cli.training.history import history_writer
from eagle3cli.training.initialise import gather_sample, initialise
from eagle3cli.training.metrics import Window
from eagle3cli.training.optim.optimizer import Optimizer
from eagle3cli.training.optim.schedule import total_steps
from eagle3cli.training.parallel import Spread, spread_out
from eagle3cli.training.sampler import Order
from eagle3cli.training.sharding import balance, share_of
from eagle3cli.training.timers import Stopwatch
from eagle3cli.training.trainer import Trainer
from eagle3cli.training.ttt.attention import attend
from eagle3cli.training.ttt.flex_attention import attend_flex
from eagle3cli.training.ttt.model import Forward
from eagle3cli.training.ttt.unroll import Attend
from eagle3cli.training.warm_start import load_warm_start, warm_start_config, warm_start_digest

INIT_ELEMENTS = 100_000_000
"""Size of the auxiliary states (400 MB in fp32) that the initial weights are solved from: as many rows as it holds.

On SmolLM2-135M 16k rows gave acceptance 1.24 (k = 5) before any training, 60k 1.29 and 140k 1.33.
"""
INIT_BATCH = 8
BALANCE_STEPS = 200
"""Steps whose balance over the ranks is told."""
SESSION_FIELDS = (
    "output_dir",
    "save_interval",
    "eval_interval",
    "log_interval",
    "keep_checkpoints",
    "early_stop",
    "max_skipped_steps",
    "resume",
    "overwrite",
    "micro_batch_size",
    "activation_checkpointing",
    "loss_chunk",
    "sharding",
    "report_to",
    "tracker_project",
    "tracker_name",
)
"""Settings that may change between the sessions of one run."""


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


def build(settings: Settings, report: Reporter, ranks: Ranks = SINGLE_PROCESS) -> Trainer:
    """All parts of the run, restored from its newest sound checkpoint where there is one."""
    if settings.train.mode == "online":
        check_groups(settings.target.tp_size, ranks)
    set_threads(settings.target.threads)
    torch.manual_seed(settings.train.seed)
    run, budget = settings.train.output_dir, parse_duration(settings.train.time_budget)
    inputs = online(settings, report, ranks) if settings.train.mode == "online" else offline(settings, report)
    embedding, head = inputs.weights["embedding"], inputs.head
    dtype = compute_type(settings.train.dtype, embedding.device)
    draft = Draft(inputs.config).to(embedding.device)
    if settings.draft.init == "draft":
        load_warm_start(draft, settings)
    else:
        draft.set_vocab(inputs.vocab.d2t, inputs.vocab.t2d)
        if draft.embed_tokens is not None:
            draft.embed_tokens.weight.data.copy_(embedding)
    scales = {"lm_head": settings.train.head_lr_scale}
    started_with = _fingerprint(settings, inputs)
    checkpoint = newest_sound(run, report, ranks)
    if settings.draft.init == "target" and checkpoint is None:
        initialise_from_target(draft, inputs, report)
    if settings.train.head_lr_scale == 0:
        draft.lm_head.weight.data.copy_(head.weight_VH[draft.draft_ids])
        draft.lm_head.requires_grad_(False)
    attend = choose_attention(settings.train.attention_backend, embedding.device, report)
    forward = Forward(draft, attend, recompute=settings.train.activation_checkpointing, chunk=settings.train.loss_chunk)
    spread = spread_out(forward, ranks, settings.train, dtype)
    trained = [(name, weight) for name, weight in draft.named_parameters() if weight.requires_grad]
    optimizer = Optimizer(
        trained, max_grad_norm=settings.train.max_grad_norm, scales=scales, kind=settings.train.optimizer
    )
    progress = Progress(fingerprint=started_with)
    if checkpoint is not None:
        changed = changed_settings(run, settings)
        progress = resume(checkpoint, draft, optimizer, started_with, report, changed=changed)
    order = Order(len(inputs.source.lengths), settings.train.batch_size, settings.train.seed)
    if ranks.world_size > 1:
        _tell_ranks(spread, order, inputs.source.lengths, report)
    return Trainer(
        settings=settings.train,
        output_dir=run,
        source=read_ahead(
            inputs.source,
            coming(order, progress.step, settings.train.micro_batch_size, inputs.source.lengths, ranks),
        ),
        eval_source=inputs.eval_source,
        order=order,
        total_steps=total_steps(settings.train, order.steps_per_epoch),
        budget_seconds=budget,
        draft=draft,
        embedding_VH=embedding,
        teacher_head=head.rows(draft.draft_ids).to(dtype),
        whole_head=head.to(dtype) if settings.train.loss != "kl" else None,
        forward=forward,
        spread=spread,
        optimizer=optimizer,
        progress=progress,
        saver=Saver(run, settings.train.keep_checkpoints, ranks, report, saved_step=progress.step),
        report=report,
        listeners=[history_writer(run, progress.step, report)] if ranks.is_main else [],
        clock=Stopwatch(embedding.device),
        facts=inputs.facts,
        window=Window(**progress.window),
    )


def _tell_ranks(spread: Spread, order: Order, lengths: Sequence[int], report: Reporter) -> None:
    batches = [order.batch(step) for step in range(min(order.steps_per_epoch, BALANCE_STEPS))]
    even = balance(batches, lengths, spread.ranks.world_size)
    kept = "whole on each" if spread.shards is None else "in shards"
    report.info(f"{spread.ranks.world_size} processes, the draft {kept}; {even:.0%} of their tokens' time is work")


def coming(
    order: Order, step: int, micro_batch_size: int | None, lengths: Sequence[int], ranks: Ranks
) -> Iterator[list[int]]:
    """Rows of every micro batch of a rank from a 0-based step on, as the trainer will ask for them."""
    while True:
        yield from filter(None, share_of(order.batch(step), lengths, ranks, micro_batch_size))
        step += 1


def choose_attention(name: str, device: torch.device, report: Reporter) -> Attend:
    """The attention kernel that a setting names on this device; says which it is.

    Raises UsageError for flex_attention without CUDA: it has no backward pass there.
    """
    if name == "flex_attention" and device.type != "cuda":
        what = f"flex_attention trains on CUDA alone; this run is on {device.type}"
        raise UsageError(what, where="--attention-backend", fix="use --attention-backend auto")
    flex = name == "flex_attention" or (name == "auto" and device.type == "cuda")
    kernel = "flex_attention, compiled" if flex else f"sdpa, {'flash kernel' if device.type == 'cpu' else 'in blocks'}"
    report.info(f"attention on {device.type}: {kernel} ({name})")
    return attend_flex if flex else attend


def online(settings: Settings, report: Reporter, ranks: Ranks = SINGLE_PROCESS) -> Inputs:
    """Inputs of a run whose target runs live."""
    raw = read_target_config(settings.target)
    config = draft_config_of(settings, raw)
    with ranks.main_process_first():
        cached = open_or_build(settings, config.draft_vocab_size, config.vocab_size, report)
    _not_empty(len(cached.train), str(settings.data.train_path))
    if not cached.summary["train"]["loss_tokens"]:
        fix = "look at the rows with eagle3 view; replies are made by eagle3 regenerate"
        raise DataError("no row holds a reply to train on", where=str(settings.data.train_path), fix=fix)
    target = open_target(settings.target, report, config.aux_layers, ranks)
    embedding_VH = target.embedding_VH
    weights = _last_layer(settings.target, raw, embedding_VH.device, embedding_VH.dtype) | {"embedding": embedding_VH}
    evaluation = OnlineSource(target, cached.eval) if cached.eval is not None and len(cached.eval) else None
    return Inputs(
        OnlineSource(target, cached.train),
        evaluation,
        cached.vocab,
        config,
        target.head,
        weights,
        cached.folder.name,
        summarize_cache(cached),
    )


def offline(settings: Settings, report: Reporter) -> Inputs:
    """Inputs of a run that reads hidden states from disk: stores, the target's folder and a draft config."""
    paths = settings.data.train_hidden_states_path or (settings.hidden_states.output_path / "train",)
    store, path = open_stores(paths), paths[0]
    _not_empty(len(store), str(path))
    eval_path = settings.data.eval_hidden_states_path or path.parent / "eval"
    wanted = settings.data.eval_hidden_states_path is not None or (eval_path / "manifest.json").exists()
    raw = read_target_config(settings.target)
    config = draft_config_of(settings, raw)
    check_aux_layers(store.meta, config.aux_layers, path, "use --aux-layers of the store, or capture again")
    if settings.draft.init != "draft":
        config = replace(config, draft_vocab_size=store.vocab.size)  # the store's vocabulary decides the draft's
    device = pick_device(settings.target.device)
    weights = _last_layer(settings.target, raw, device, torch.float32 if device.type == "cpu" else torch.bfloat16)
    if weights["head"].shape != (store.meta.vocab_size, store.meta.hidden_size):
        raise UsageError(
            f"the store was captured from a target with vocab x hidden {store.meta.vocab_size} x "
            f"{store.meta.hidden_size}; this one has {tuple(weights['head'].shape)}",
            where=str(path),
            fix=f"give the target it came from ({store.meta.target})",
        )
    held_out = Store(eval_path) if wanted else None
    now = fingerprint(settings.target.model_path, revision=settings.target.revision)
    for each in filter(None, (*store.stores, held_out)):
        if each.meta.target_hash != now:
            fix = f"give the target it came from ({each.meta.target}), or capture again"
            what = "was captured from another target: config or weights differ"
            raise UsageError(what, where=str(each.folder), fix=fix)
    evaluation = StoreSource(held_out, device=device) if held_out is not None else None
    report.info(f"hidden states of {len(store)} rows, {sum(store.lengths)} tokens from {', '.join(map(str, paths))}")
    head = make_head(raw, weights["head"], weights.get("head_bias"))
    facts = summarize_stores(store, paths, held_out, settings.data.cache_dir / "processed_dataset")
    return Inputs(StoreSource(store, device=device), evaluation, store.vocab, config, head, weights, store.key, facts)


def initialise_from_target(draft: Draft, inputs: Inputs, report: Reporter) -> None:
    """Solve the initial weights from the first rows of the training data."""
    weights = inputs.weights
    order = Order(len(inputs.source.lengths), INIT_BATCH, seed=0)
    batches = (inputs.source.batch(order.batch(step)) for step in range(order.steps_per_epoch))
    sample = gather_sample(batches, weights["final_norm"], INIT_ELEMENTS // draft.fc.in_features)
    if len(sample.token_R) < 2:
        report.warn("no reply has two tokens in the sample; the draft starts from random weights")
        return
    with report.task("initial weights", total=1, unit="solves") as task:
        initialise(
            draft,
            sample,
            embedding_VH=weights["embedding"],
            head=inputs.head,
            final_norm_H=weights["final_norm"],
            last_layer_mlp={k: weights[k] for k in ("gate_proj", "up_proj", "norm") if k in weights},
        )
        task.advance(1)


def parse_duration(text: str | None) -> float | None:
    """Seconds of ``90``, ``90s``, ``40m`` or ``1.5h``; None for None."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if not match or float(match[1]) <= 0:
        raise UsageError(f"not a duration: {text}", where="--time-budget", fix="write 90s, 40m or 1.5h")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]


def draft_config_of(settings: Settings, raw: dict[str, Any]) -> DraftConfig:
    """The config of the draft that these settings mean for the target with the config ``raw``."""
    draft = settings.draft
    if draft.init == "draft":
        return warm_start_config(settings, raw)
    config = read_draft_config(draft.config, raw, draft_vocab_size=draft.vocab_size, aux_layers=draft.aux_layers)
    return replace(
        config,
        fc_norm=config.fc_norm if draft.fc_norm is None else draft.fc_norm,
        norm_output=config.norm_output if draft.norm_output is None else draft.norm_output,
    )


def _last_layer(
    target: TargetSettings, raw: dict[str, Any], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    last = int(text_part(raw)["num_hidden_layers"]) - 1
    found = read_target_tensors(target.model_path, last, revision=target.revision)
    return {name: value.to(device, dtype) for name, value in found.items()}


def _not_empty(rows: int, where: str) -> None:
    if not rows:
        raise UsageError(
            "no rows to train on", where=where, fix="look at the summary of eagle3 cache: all were rejected"
        )


def changed_settings(run: Path, settings: Settings) -> list[str]:
    """What differs from the ``settings.toml`` of an earlier session of a run, as ``table.key was A, is B``."""
    path = run / "settings.toml"
    if not path.is_file():
        return []
    was, now = (tomllib.loads(text) for text in (path.read_text(encoding="utf-8"), to_toml(settings)))
    changed: list[str] = []
    for table in ("target", "draft", "data", "train"):
        old, new = was.get(table, {}), now.get(table, {})
        keys = sorted((old.keys() | new.keys()) - set(SESSION_FIELDS))
        changed += changes(old, new, keys=keys, absent="not set", text=f"{table}.{{key}} was {{was}}, is {{now}}")
    return changed


def _fingerprint(settings: Settings, inputs: Inputs) -> str:
    """Everything that decides the run's numbers, hashed."""
    train: TrainSettings = settings.train
    kept = {k: v for k, v in train.model_dump(mode="json").items() if k not in SESSION_FIELDS}
    target = fingerprint(settings.target.model_path, revision=settings.target.revision)
    started = warm_start_digest(settings) or settings.draft.init
    return digest_json([kept, started, inputs.config.to_sglang(), inputs.data_key, target], sort_keys=False)
