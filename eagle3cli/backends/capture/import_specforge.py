"""SpecForge's files of hidden states made a store; the target gives its head, for the most likely tokens."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from eagle3cli.backends.capture.passes import state_row
from eagle3cli.backends.target.head import fingerprint, read_head
from eagle3cli.backends.target.hf import pick_device, read_target_config
from eagle3cli.backends.target.logits import Head
from eagle3cli.data.hidden_states.calibration import describe_sample, fit_codec, sample_rows
from eagle3cli.data.hidden_states.forecast import check_space, plan_store, report_size
from eagle3cli.data.hidden_states.quantize import Quantization
from eagle3cli.data.hidden_states.rows import StateRow, count_rows
from eagle3cli.data.hidden_states.specforge_files import (
    FeatureFiles,
    list_files,
    read_features,
    read_listed,
)
from eagle3cli.data.hidden_states.store import Index, StoreMeta, vocab_hash
from eagle3cli.data.hidden_states.writer import ERRORS, StoreWriter, discard_store
from eagle3cli.data.tokens.counts import count_tokens, fit_to_vocab, rank_tokens
from eagle3cli.data.tokens.vocab import VocabMapping, from_ids
from eagle3cli.errors import DataError
from eagle3cli.models.config import DraftConfig, read_draft_config
from eagle3cli.runtime.files import writing
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.stop import Stop
from eagle3cli.settings.tables import Settings

SAMPLE_TOKENS = 4096
"""Of the states that the encoding is fitted to."""


@dataclass(frozen=True)
class ImportResult:
    """What came of an import."""

    rows: int
    tokens: int
    rejected: int
    encoding: Quantization
    bytes: int
    nothing_new: bool
    """An earlier run had written all of it."""


def draft_vocab(listed: FeatureFiles, config: DraftConfig, reply_weight: int, prompt_weight: int) -> VocabMapping:
    """The draft's vocabulary for these rows, counted as ``eagle3 cache`` does."""
    reply, prompt = (fit_to_vocab(counts, config.vocab_size) for counts in count_tokens(listed.rows))
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    always = [token for token in (config.bos_token_id, *ends) if token is not None]
    ranking = rank_tokens(reply, prompt, always=always, reply_weight=reply_weight, prompt_weight=prompt_weight)
    return from_ids(ranking.first(config.draft_vocab_size), config.vocab_size)


def import_split(settings: Settings, source: Path, folder: Path, report: Reporter, stop: Stop) -> ImportResult:
    """Import as the settings say: target, draft, encoding."""
    requested = settings.hidden_states
    draft = settings.draft
    target = settings.target
    raw = read_target_config(target)
    config = read_draft_config(draft.config, raw, draft_vocab_size=draft.vocab_size, aux_layers=draft.aux_layers)
    device = pick_device(target.device)
    head = read_head(target.model_path, raw, revision=target.revision)
    if requested.overwrite:
        discard_store(folder)
    return import_files(
        source,
        folder,
        ImportTarget(
            target.model_path,
            target.revision,
            fingerprint(target.model_path, revision=target.revision),
            config,
            head.to(device, torch.float32 if device.type == "cpu" else torch.bfloat16),
        ),
        requested.encoding,
        shard_mb=requested.shard_mb,
        weights=(settings.cache.reply_weight, settings.cache.prompt_weight),
        report=report,
        stop=stop,
    )


@dataclass(frozen=True)
class ImportTarget:
    """What an import reads of the target."""

    path: str
    revision: str | None
    hash: str
    config: DraftConfig
    """Of the draft: it names the auxiliary layers."""
    head: Head


def import_files(
    source: Path,
    folder: Path,
    target: ImportTarget,
    encoding: Quantization | Literal["auto"],
    *,
    shard_mb: int,
    weights: tuple[int, int],
    report: Reporter,
    stop: Stop,
) -> ImportResult:
    """Write the rows of SpecForge's files below ``source`` to ``folder``, or what an earlier run has left to do.

    ``weights`` are those of reply and prompt tokens for the draft's vocabulary. Files that cannot be used go to
    ``errors.jsonl`` in the store's folder, each with its reason.
    """
    config = target.config
    sizes = {"layers": len(config.aux_layers), "hidden": config.target_hidden_size, "vocab": config.vocab_size}
    listed = read_listed(list_files(source), **sizes, report=report)
    counts = count_rows(listed.rows)
    if not bool((counts.counts_N3 > 0).all(1).any()):
        first = next(iter(listed.errors.items()), None)
        reason = f"; {first[0].name}: {first[1]}" if first else ""
        files = len(listed.rows) + len(listed.errors)
        raise DataError("no-reply-tokens", f"none of {files} files has a row with loss{reason}", where=str(source))
    vocab = draft_vocab(listed, config, *weights)
    meta = StoreMeta(
        target=target.path,
        revision=target.revision,
        target_hash=target.hash,
        aux_layers=config.aux_layers,
        hidden_size=config.target_hidden_size,
        vocab_size=config.vocab_size,
        compute_dtype=" and ".join(sorted(str(kind).removeprefix("torch.") for kind in listed.dtypes)),
        data_hash=counts.data_hash,
        rows=len(listed.rows),
        vocab_hash=vocab_hash(vocab),
        shard_mb=shard_mb,
        encoding="bf16",  # until it is chosen
        source="imported from SpecForge's files",
    )
    meta, layout, existing = plan_store(folder, meta, encoding, counts, report)
    report_size(folder, layout, meta, counts, report)
    if existing is None:
        check_space(folder, layout.total, report)

    sample = [_read_row(listed.files[number], target.head, sizes) for number in sample_rows(counts, SAMPLE_TOKENS)]
    index = existing.index if existing is not None else None
    index = index or Index(counts, fit_codec(meta.encoding, sample), vocab)
    facts = describe_sample(index.codec, sample)
    with StoreWriter(folder, meta, layout, index, report, sample=facts) as writer:
        nothing_new = not writer.pending
        _write_errors(folder / ERRORS, listed.errors)
        with report.task("importing", len(listed.rows), unit="files") as task:
            for shard in writer.pending:
                with writer.writing(shard) as put:
                    for number in writer.layout.rows(shard):
                        stop.check(f"finished shards are in {folder}")
                        put(number, index.codec.pack([_read_row(listed.files[number], target.head, sizes)])[0])
                        task.advance()
        writer.finish()
    rows = (len(listed.rows), counts.tokens, len(listed.errors))
    return ImportResult(*rows, meta.encoding, writer.bytes, nothing_new)


@torch.no_grad()
def _read_row(path: Path, head: Head, sizes: dict[str, int]) -> StateRow:
    """What a store keeps of one file. Raises DataError where its states are not finite."""
    features = read_features(path, **sizes)

    def top_tokens(last_RH: Tensor) -> Tensor:
        return head.top_tokens(last_RH.to(head.weight_VH)).cpu()

    row = state_row(features.row, features.aux_SC, features.last_SH, top_tokens)
    if not bool(torch.isfinite(row.aux_UC).all()) or not bool(torch.isfinite(row.last_RH).all()):
        fix = "move the file away and import again with --overwrite"
        raise DataError("states-not-finite", "holds states that are not finite", where=str(path), fix=fix)
    return replace(row, aux_UC=row.aux_UC.clone())  # the others are copies already: the file's map can go


def _write_errors(path: Path, errors: dict[Path, str]) -> None:
    if errors:
        with writing(path) as f:
            for file, reason in errors.items():
                f.write(json.dumps({"file": str(file), "reason": reason}, ensure_ascii=False) + "\n")
