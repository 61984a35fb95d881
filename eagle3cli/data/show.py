"""Rows as pieces of text that a person can read: what is trained, whose turn it is, what the draft cannot propose."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eagle3cli.data.cache import cache_key, data_paths, recipe_of
from eagle3cli.data.cache_build import SUMMARY
from eagle3cli.data.rows import TokenRow, TokenRows
from eagle3cli.data.tokenise import blocks_of, encode_items
from eagle3cli.data.tokenizer import load_tokenizer
from eagle3cli.data.vocab import VocabMapping, load_vocab
from eagle3cli.errors import DataError, UsageError
from eagle3cli.runtime.files import read_json
from eagle3cli.settings.tables import Settings

MOST_IDS_OF_A_CHARACTER = 8


@dataclass(frozen=True)
class Piece:
    """The fewest neighbouring tokens that make whole characters."""

    ids: tuple[int, ...]
    text: str
    trained: bool
    known: bool
    """The draft's vocabulary holds all of ``ids``."""
    role: str
    """Whose message it stands in; empty where unknown."""


@dataclass(frozen=True)
class ShownRow:
    """A row for the eye. ``number`` counts from 1."""

    number: int
    id: str
    line: int
    tokens: int
    trained: int
    missing: int
    """Trained tokens that the draft's vocabulary lacks."""
    pieces: tuple[Piece, ...]


@dataclass(frozen=True)
class Shown:
    """Rows to show, and where they come from."""

    source: str
    total: int | None
    """Rows of the source, if known."""
    draft_vocab: int | None
    rows: tuple[ShownRow, ...]


def show(settings: Settings, *, path: Path | None = None, rows: Sequence[int] | None = None) -> Shown:
    """The wanted rows of a jsonl file, a cache or a hidden-state store; by default of the training data.

    Raises UsageError for a row that is not there, DataError for a path that is none of these.
    """
    wanted = tuple(settings.view.rows if rows is None else rows)
    path = path or settings.view.path
    count = settings.view.random if rows is None else None
    draw = None if count is None else (lambda total: _drawn(total, count, settings.view.seed))
    if path is None:
        recipe, paths = recipe_of(settings), data_paths(settings)
        folder = settings.data.cache_dir / "processed_dataset" / cache_key(settings, recipe, paths)
        if (folder / SUMMARY).is_file():
            return _of_cache(folder, "train", settings, wanted, draw)
        return _of_file(paths["train"], settings, wanted, draw)
    if (path / "manifest.json").is_file():
        return _of_store(path, settings, wanted, draw)
    for folder, split in ((path, "train"), (path.parent, path.name)):
        if (folder / SUMMARY).is_file() and (folder / split).is_dir():
            return _of_cache(folder, split, settings, wanted, draw)
    if not path.is_file():
        what = (
            "neither a cache (processed_dataset/KEY) nor a hidden-state store"
            if path.is_dir()
            else "no such file or folder"
        )
        raise DataError(what, where=str(path), fix="check --path")
    return _of_file(path, settings, wanted, draw)


Draw = Callable[[int], list[int]] | None


def _drawn(total: int, count: int, seed: int) -> list[int]:
    return sorted(random.Random(seed).sample(range(1, total + 1), min(count, total)))


def _of_cache(folder: Path, split: str, settings: Settings, wanted: tuple[int, ...], draw: Draw) -> Shown:
    rows = TokenRows.open(folder / split)
    tokenizer = _tokenizer(settings, str(read_json(folder / SUMMARY)["model_path"]))
    vocab = _newest_vocab(folder)
    return _shown(str(folder / split), len(rows), vocab, tokenizer, wanted, draw, rows.__getitem__)


def _newest_vocab(folder: Path) -> VocabMapping | None:
    files = (folder.parent.parent / "vocab_mapping").glob(f"{folder.name}-*.safetensors")
    newest = max(files, key=lambda file: file.stat().st_mtime, default=None)
    return load_vocab(newest) if newest else None


def _of_store(path: Path, settings: Settings, wanted: tuple[int, ...], draw: Draw) -> Shown:
    from eagle3cli.data.store import Store

    store = Store(path)

    def row(index: int) -> TokenRow:
        state = store[index]
        mask = state.loss_mask_S.numpy().astype(np.uint8)
        return TokenRow("", state.token_ids_S.numpy().astype(np.int32), mask)

    tokenizer = _tokenizer(settings, store.meta.target)
    return _shown(str(path), len(store), store.vocab, tokenizer, wanted, draw, row)


def _tokenizer(settings: Settings, made_with: str) -> Any:
    target = settings.target
    return load_tokenizer(
        target.model_path or made_with, revision=target.revision, trust_remote_code=target.trust_remote_code
    )


def _of_file(path: Path, settings: Settings, wanted: tuple[int, ...], draw: Draw) -> Shown:
    """Rows encoded from conversations on the spot, numbered as in a cache: rejected rows have no number."""
    recipe = recipe_of(settings)
    encoder = recipe.encoder()
    last = None if draw else max(wanted, default=0)
    rows: list[TokenRow] = []
    for items in blocks_of(path):
        block = encode_items(encoder, items, str(path), preformatted=recipe.is_preformatted)
        rows += [encoded.row for encoded in block.rows]
        if last is not None and len(rows) >= last:
            break
    return _shown(str(path), len(rows), None, encoder.tokenizer, wanted, draw, rows.__getitem__)


def _shown(
    source: str,
    total: int,
    vocab: VocabMapping | None,
    tokenizer: Any,
    wanted: tuple[int, ...],
    draw: Draw,
    row: Callable[[int], TokenRow],
) -> Shown:
    numbers = draw(total) if draw else list(wanted)
    for number in numbers:
        if not 1 <= number <= total:
            raise UsageError(f"no row {number}; the rows are 1 to {total}", where=source, fix="rows are counted from 1")
    shown = tuple(show_row(number, row(number - 1), tokenizer, vocab) for number in numbers)
    return Shown(source, total, vocab.size if vocab else None, shown)


def show_row(number: int, row: TokenRow, tokenizer: Any, vocab: VocabMapping | None) -> ShownRow:
    """One row in pieces."""
    ids = [int(i) for i in row.token_ids]
    trained = [bool(m) for m in row.loss_mask]
    known = vocab.t2d.numpy()[np.asarray(ids, dtype=np.int64)].tolist() if vocab else [True] * len(ids)
    starts = dict(row.turns)
    pieces: list[Piece] = []
    role, at = "", 0
    while at < len(ids):
        role = starts.get(at, role)
        end = at + 1
        text = tokenizer.decode(ids[at:end])
        while (
            "\ufffd" in text and end < len(ids) and end - at < MOST_IDS_OF_A_CHARACTER and trained[end] == trained[at]
        ):
            end += 1
            text = tokenizer.decode(ids[at:end])
        if "\ufffd" in text:  # bytes that never become a character: one token at a time
            end, text = at + 1, tokenizer.decode(ids[at : at + 1])
        pieces.append(Piece(tuple(ids[at:end]), text, trained[at], all(known[at:end]), role))
        at = end
    missing = sum(t and not k for t, k in zip(trained, known, strict=True))
    return ShownRow(number, row.id, row.line, len(ids), sum(trained), missing, tuple(pieces))
