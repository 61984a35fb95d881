"""The acceptance length of a draft folder on cached rows or on a hidden-state store."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from eagle3cli.backends.batches.batch import BatchSource
from eagle3cli.backends.batches.online import OnlineSource
from eagle3cli.backends.batches.store import StoreSource
from eagle3cli.backends.target.auto import open_target
from eagle3cli.backends.target.head import fingerprint, read_target_tensors
from eagle3cli.backends.target.hf import pick_device, read_target_config
from eagle3cli.backends.target.logits import Head, make_head
from eagle3cli.data.hidden_states.store import Store, check_aux_layers
from eagle3cli.data.tokens.cache import open_or_build
from eagle3cli.errors import UsageError
from eagle3cli.models.config import DraftConfig
from eagle3cli.models.folders import find_draft
from eagle3cli.models.inference import load_for_inference
from eagle3cli.models.sampling import Sampling
from eagle3cli.models.serve import with_window
from eagle3cli.runtime.devices import set_threads
from eagle3cli.runtime.report import Reporter
from eagle3cli.settings.tables import Settings
from eagle3cli.training.eval.evaluate import Evaluation, evaluate
from eagle3cli.training.eval.sampled import drawn_elsewhere
from eagle3cli.training.ttt.flex_attention import attention_for

EVAL_BATCH = 8
"""Rows that run at once, at most."""
EVAL_TOKENS = 1 << 15
"""Tokens that run at once, at most, in more than one row: memory grows with them."""


def rows_at_once(longest: int) -> int:
    """Rows of an evaluation's batch where the longest has so many tokens."""
    return max(1, min(EVAL_BATCH, EVAL_TOKENS // max(1, longest)))


def measure(settings: Settings, report: Reporter) -> Evaluation:
    """Walk the held-out rows: of a store where one is named, else of the cached evaluation (or training) file."""
    set_threads(settings.target.threads)
    if settings.draft.path is None:
        raise UsageError(
            "missing-draft", "no draft", where="--draft-model-path", fix="run eagle3 train first, or give a folder"
        )
    raw = read_target_config(settings.target) if settings.target.model_path else None
    draft = load_for_inference(find_draft(Path(settings.draft.path)), raw, settings.draft.aux_layers)
    draft.config = with_window(draft.config, settings.draft)  # no weight depends on it
    source, embedding, head = _source(settings, draft.config, report)
    draft = draft.to(embedding.device).cast(embedding.dtype)
    count = min(settings.eval.rows or len(source.lengths), len(source.lengths))
    if not count:
        raise UsageError("missing-data", "no held-out rows", where="--eval-data-path", fix="give a file with replies")
    options = settings.eval
    evaluation = evaluate(
        draft,
        source,
        draft.embedding(embedding),
        draft_steps=options.depths,
        rows=range(count),
        batch_size=rows_at_once(max(source.lengths[:count])),
        report=report,
        attend=attention_for(settings.train.attention_backend, embedding.device),
        samplings=[Sampling(t, options.top_p, options.top_k) for t in dict.fromkeys(options.temperature) if t],
        head=head,
    )
    for warning in filter(None, (drawn_elsewhere(evaluation.sampled), evaluation.context_warning)):
        report.warn(warning)
    return evaluation


def held_out(settings: Settings) -> Settings:
    """The settings with training data, which a cache is made of; raises UsageError where no data are named."""
    data = settings.data
    if data.eval_path is None and data.train_path is None:
        raise UsageError(
            "missing-data",
            "nothing to evaluate on",
            where="--eval-data-path",
            fix="run eagle3 merge first, or give a jsonl file",
        )
    if data.train_path is not None:
        return settings
    return settings.updated("data", train_path=data.eval_path)


def _source(settings: Settings, config: DraftConfig, report: Reporter) -> tuple[BatchSource, Tensor, Head | None]:
    """The rows, the target's embedding and, where its probabilities are asked for, its head."""
    store_path = settings.data.eval_hidden_states_path
    if store_path is not None:
        store = Store(store_path)
        check_aux_layers(store.meta, config.aux_layers, store_path)
        store.require_target(fingerprint(settings.target.model_path, revision=settings.target.revision))
        device = pick_device(settings.target.device)
        tensors = read_target_tensors(settings.target.model_path, revision=settings.target.revision)
        embedding = tensors["embedding"].to(device).float()
        if not any(settings.eval.temperature):
            return StoreSource(store, device=device), embedding, None
        # One tensor where the two are tied.
        weight = embedding if tensors["head"] is tensors["embedding"] else tensors["head"].to(device).float()
        bias = tensors.get("head_bias")
        raw = read_target_config(settings.target)
        head = make_head(raw, weight, None if bias is None else bias.to(device).float())
        return StoreSource(store, device=device), embedding, head
    data = settings.data
    settings = held_out(settings)
    cached = open_or_build(settings, config.draft_vocab_size, config.vocab_size, report)
    rows = cached.eval if cached.eval is not None and data.train_path is not None else cached.train
    target = open_target(settings.target, report, config.aux_layers)
    return OnlineSource(target, rows), target.embedding_VH, target.head
