"""eagle3 cache: token rows and the draft's vocabulary, built once for the same content.

    CACHE_DIR/processed_dataset/KEY/{train,eval}/   Arrow rows, as `datasets.load_from_disk` reads them
    CACHE_DIR/processed_dataset/KEY/summary.json    counts; errors.jsonl beside it has every row that needs a look
    CACHE_DIR/vocab_mapping/KEY-SIZE-WEIGHTS.safetensors

KEY is a hash of the inputs' content, the tokenizer, the template and the options: changed data never meet an old cache.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from safetensors.numpy import load_file, save

from eagle3cli.data.encode import NO_SPAN
from eagle3cli.data.ledger import ERRORS, Ledger
from eagle3cli.data.manifest import Stat, describe, remove_leftovers
from eagle3cli.data.rows import TokenRows, write_rows
from eagle3cli.data.templates import template_text
from eagle3cli.data.tokenise import PackedBlock, Recipe, tokenise
from eagle3cli.data.tokenizer import load_tokenizer
from eagle3cli.data.vocab import (
    Counts,
    VocabMapping,
    add_counts,
    choose,
    coverage,
    fit,
    load_vocab,
    no_counts,
    save_vocab,
)
from eagle3cli.errors import DataError, Eagle3Error, UsageError
from eagle3cli.runtime.files import read_json, write_folder, write_json
from eagle3cli.runtime.report import Reporter, Task
from eagle3cli.runtime.stop import Stop, catch_stop
from eagle3cli.settings.tables import Settings

FORMAT = 1
"""Raised when the same inputs would give other rows."""
SUMMARY, COUNTS, DIGESTS = "summary.json", "counts.safetensors", "inputs.json"
TOKENIZER_PARTS = ("*token*.json", "*.model", "chat_template*", "vocab.*", "merges.txt", "*config.json", "*.tiktoken")
COVERAGE_SIZES = (4096, 8192, 16384, 32000, 65536)


@dataclass(frozen=True)
class Cached:
    """Token rows and vocabulary, ready to train on."""

    train: TokenRows
    eval: TokenRows | None
    vocab: VocabMapping
    folder: Path
    """``processed_dataset/KEY``."""
    summary: dict[str, Any]
    """Counts of each split, coverage of the vocabulary, and whether this call built the rows."""


def open_or_build(settings: Settings, draft_vocab_size: int, vocab_size: int, report: Reporter) -> Cached:
    """The cache for these settings, built if there is none yet.

    Raises UsageError without training data, DataError for unusable data, ModelError for the tokenizer.
    """
    paths = data_paths(settings)
    recipe = recipe_of(settings)
    key = cache_key(settings, recipe, paths)
    folder = settings.data.cache_dir / "processed_dataset" / key
    built = settings.cache.overwrite or not (folder / SUMMARY).is_file()
    if built:
        remove_leftovers(folder.parent)
        write_folder(folder, lambda temporary: _build(temporary, key, paths, recipe, settings.data.num_proc, report))
    summary: dict[str, Any] = read_json(folder / SUMMARY)
    for split in paths if built else ():
        if summary[split]["rejected"]:
            counted = f"{summary[split]['rejected']} of {summary[split]['read']} rows of {split}"
            report.warn(f"{counted} were rejected; each with its place and reason: {folder / ERRORS}")
    vocab, told = _vocabulary(settings, folder, summary, draft_vocab_size, vocab_size)
    return Cached(
        train=TokenRows.open(folder / "train"),
        eval=TokenRows.open(folder / "eval") if "eval" in paths else None,
        vocab=vocab,
        folder=folder,
        summary={**summary, "key": key, "built": built, "vocab": told},
    )


def data_paths(settings: Settings) -> dict[str, Path]:
    """The input file of each split; raises where there is no training file."""
    data = settings.data
    if data.train_path is None:
        fix = "pass --train-data-path FILE.jsonl, or set train_path in the [data] table of eagle3.toml"
        raise UsageError("no training data given", where="data.train_path", fix=fix)
    paths = {"train": data.train_path} | ({"eval": data.eval_path} if data.eval_path is not None else {})
    for split, path in paths.items():
        if not path.is_file():
            what = "is a folder, not a file" if path.is_dir() else "no such file"
            raise DataError(what, where=str(path), fix=f"check data.{split}_path (--{split}-data-path)")
    return paths


def recipe_of(settings: Settings) -> Recipe:
    """What decides the rows' tokens and masks."""
    target, data = settings.target, settings.data
    return Recipe(
        model_path=target.model_path,
        revision=target.revision,
        trust_remote_code=target.trust_remote_code,
        chat_template=data.chat_template,
        max_length=data.max_length,
        last_turn_only=data.last_turn_only,
        is_preformatted=data.is_preformatted,
    )


def cache_key(settings: Settings, recipe: Recipe, paths: dict[str, Path]) -> str:
    """16 hex digits that change with the content of any input and with every option that matters."""
    known_file = settings.data.cache_dir / DIGESTS
    known: dict[str, Stat] = read_json(known_file) if known_file.is_file() else {}
    folder = Path(recipe.model_path).expanduser()
    parts = sorted({file for pattern in TOKENIZER_PARTS for file in folder.glob(pattern)}) if folder.is_dir() else []
    described = describe([*paths.values(), *parts], known)
    if any(known.get(name) != stat for name, stat in described.items()):
        write_json(known_file, {**known, **described})
    content = {
        "format": FORMAT,
        "inputs": {split: described[str(path.resolve())]["sha256"] for split, path in paths.items()},
        "tokenizer": _tokenizer_content(recipe, {p.name: described[str(p.resolve())]["sha256"] for p in parts}),
        "options": [recipe.max_length, recipe.last_turn_only, recipe.is_preformatted],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _tokenizer_content(recipe: Recipe, files: dict[str, str]) -> dict[str, Any]:
    """Files of a local tokenizer, or for one of the hub what it holds in memory; and the template's text."""
    name = recipe.chat_template
    if files and name == "auto":
        return {"files": files, "template": None}
    tokenizer = load_tokenizer(recipe.model_path, revision=recipe.revision, trust_remote_code=recipe.trust_remote_code)
    own = json.dumps(tokenizer.chat_template, sort_keys=True)
    whole = hashlib.sha256(tokenizer.backend_tokenizer.to_str().encode()).hexdigest()
    return {"files": files or {"tokenizer": whole, "chat_template": own}, "template": template_text(name, tokenizer)}


def _build(folder: Path, key: str, paths: dict[str, Path], recipe: Recipe, num_proc: int, report: Reporter) -> None:
    encoder = recipe.encoder()
    summary: dict[str, Any] = {"model_path": recipe.model_path, "chat_template": recipe.chat_template}
    counts: dict[str, Counts] = {}
    with (folder / ERRORS).open("w", encoding="utf-8") as errors:
        for split, path in paths.items():
            found = _Split(path, Ledger(errors))
            blocks = tokenise(path, recipe, num_proc or cpu_count(), encoder)
            with report.task(f"tokenising {split}") as task, catch_stop(report) as stop:
                write_rows(folder / split, _batches(blocks, found, task, stop), fingerprint=f"{key}-{split}")
            summary[split] = found.summary()
            counts |= {f"{split}_reply": found.reply, f"{split}_prompt": found.prompt}
            if found.no_span:
                text = f"({found.no_span} of {found.ledger.written} rows of {split}; they train nothing)"
                report.warn(f"{NO_SPAN} {text}")
    special = [i for i, token in encoder.tokenizer.added_tokens_decoder.items() if token.special]
    summary |= {"special_ids": special, "end_ids": sorted(encoder.end_ids)}
    (folder / COUNTS).write_bytes(save(counts))
    write_json(folder / SUMMARY, summary)


def _batches(blocks: Iterator[PackedBlock], found: _Split, task: Task, stop: Stop) -> Iterator[pa.RecordBatch]:
    for block in blocks:
        stop.check("nothing was kept; the cache will be built from the start")
        yield found.take(block)
        task.advance(block.read)


def cpu_count() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Split:
    """Counts of one split while its blocks pass."""

    def __init__(self, path: Path, ledger: Ledger) -> None:
        self.path, self.ledger = path, ledger
        self.reply, self.prompt = no_counts(), no_counts()
        self.tokens = self.loss_tokens = self.truncated = self.no_span = self.longest = 0

    def take(self, block: PackedBlock) -> pa.RecordBatch:
        ids = block.batch.column("input_ids").values.to_numpy()
        trained = block.batch.column("loss_mask").values.to_numpy().astype(bool)
        lengths = np.diff(block.batch.column("input_ids").offsets.to_numpy())
        self.reply, self.prompt = add_counts(self.reply, ids[trained]), add_counts(self.prompt, ids[~trained])
        self.tokens += len(ids)
        self.loss_tokens += int(trained.sum())
        self.truncated += block.truncated
        self.no_span += len(block.no_span)
        self.longest = max([self.longest, *lengths.tolist()])
        self.ledger.read += block.read
        self.ledger.written += block.batch.num_rows
        for line, name, reason in block.rejected:
            self.ledger.drop("rejected", f"{self.path}:{line}", name, reason)
        for line, name in block.no_span:
            self.ledger.note(f"{self.path}:{line}", name, NO_SPAN)
        for repairs in block.repairs:
            self.ledger.repair(repairs)
        return block.batch

    def summary(self) -> dict[str, Any]:
        if not self.ledger.written:
            reasons = (
                "; ".join(f"{n} x {why}" for why, n in self.ledger.summary()["reasons"].items()) or "it has no rows"
            )
            raise DataError(
                f"no usable rows ({reasons})",
                where=str(self.path),
                fix="rows are made by `eagle3 prepare` and `eagle3 regenerate`",
            )
        counts = self.ledger.summary()
        for unused in ("duplicates", "filtered", "left_out"):
            del counts[unused]
        return {
            "rows": self.ledger.written,
            "tokens": self.tokens,
            "loss_tokens": self.loss_tokens,
            "longest": self.longest,
            "truncated": self.truncated,
            "no_span": self.no_span,
            **counts,
        }


def _vocabulary(
    settings: Settings, folder: Path, summary: dict[str, Any], draft_vocab_size: int, vocab_size: int
) -> tuple[VocabMapping, dict[str, Any]]:
    """The draft's vocabulary for these rows, chosen or read back, and what it covers."""
    weights = {"reply_weight": settings.cache.reply_weight, "prompt_weight": settings.cache.prompt_weight}
    if not any(weights.values()):
        raise UsageError("both weights are 0", where="cache.reply_weight", fix="leave one of them above 0")
    size = min(draft_vocab_size, vocab_size)
    name = f"{folder.name}-{size}-{weights['reply_weight']}x{weights['prompt_weight']}.safetensors"
    path = settings.data.cache_dir / "vocab_mapping" / name
    counts = {split: fit(array, vocab_size) for split, array in load_file(folder / COUNTS).items()}
    reply, prompt = counts["train_reply"], counts["train_prompt"]
    used = reply + prompt
    always = [*summary["end_ids"], *(i for i in summary["special_ids"] if i < vocab_size and used[i])]
    mapping = None
    if path.is_file() and not settings.cache.overwrite:
        try:
            mapping = load_vocab(path)
        except Eagle3Error:
            mapping = None
    if mapping is None or mapping.target_size != vocab_size:
        mapping = choose(reply, prompt, size, always=always, **weights)
        save_vocab(path, mapping)
    judged = "eval" if "eval_reply" in counts else "train"
    held_out = counts[f"{judged}_reply"]
    sizes = sorted({size, *(s for s in COVERAGE_SIZES if len(set(always)) <= s < vocab_size)})
    covered = {s: coverage(choose(reply, prompt, s, always=always, **weights), held_out) for s in sizes}
    told = {"size": mapping.size, "target_size": vocab_size, "file": str(path), "coverage_of": judged}
    return mapping, {**told, "coverage": covered[size], "coverage_by_size": covered}
