"""Rows as pieces of text that a person can read: what is trained, whose turn it is, what the draft cannot propose."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from eagle3cli.data.chat.tokenizer import load_tokenizer
from eagle3cli.data.images.reference import shown
from eagle3cli.data.inspect.selection import RowSelection, SelectedRow, rows_of_cache, rows_of_file, rows_of_store
from eagle3cli.data.tokens import on_policy
from eagle3cli.data.tokens.build import SUMMARY
from eagle3cli.data.tokens.cache import cache_key, data_paths, encoder_config
from eagle3cli.data.tokens.rows import TokenRow
from eagle3cli.errors import DataError, UsageError
from eagle3cli.runtime.files import read_json
from eagle3cli.settings.tables import Settings

MOST_IDS_OF_A_CHARACTER = 8
TOKENS_BEHIND = 8
"""Tokens shown before a reply where it is not known where its header begins."""

VocabMask = npt.NDArray[np.bool_]
"""Whether the draft's vocabulary holds each of the target's token ids."""


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
class TrainedSpan:
    """A run of trained tokens ``[first, last)``, counted from 0, and its two edges."""

    first: int
    last: int
    behind: str
    """What the target reads last before it writes: the reply's header."""
    begins: str
    ends: str
    ended: bool
    """The last token is a special one, as the end of a turn is."""


@dataclass(frozen=True)
class RowView:
    """A row for the eye. ``number`` counts from 1."""

    number: int
    id: str
    line: int
    tokens: int
    trained: int
    truncated: bool
    missing: int
    """Trained tokens that the draft's vocabulary lacks."""
    pieces: tuple[Piece, ...] = ()
    replies: tuple[TrainedSpan, ...] = ()
    rejected: str | None = None
    """Why the row is none, where it was rejected."""
    on_policy: dict[str, Any] | None = None
    """How far its replies are the target's own, where a pass has seen that."""
    images: tuple[str, ...] = ()
    """Where its images are."""


@dataclass(frozen=True)
class View:
    """Rows to show, and where they come from."""

    source: str
    draft_vocab: int | None
    rows: tuple[RowView, ...]


def show(settings: Settings, *, path: Path | None = None, rows: Sequence[int] | None = None) -> View:
    """The wanted rows of a jsonl file, a cache or a hidden-state store; by default of the training data.

    Raises UsageError for a row that is not there, DataError for a path that is none of these.
    """
    selection = _selection(settings) if rows is None else RowSelection(numbers=tuple(rows))
    path = path or settings.view.path
    if path is None:
        config = encoder_config(settings)
        paths = data_paths(settings)
        folder = settings.data.cache_dir / "processed_dataset" / cache_key(settings, config, paths)
        if (folder / SUMMARY).is_file():
            return _cache(folder, "train", settings, selection)
        return _file(paths["train"], settings, selection)
    if (path / "manifest.json").is_file():
        return _store(path, settings, selection)
    for folder, split in ((path, "train"), (path.parent, path.name)):
        if (folder / SUMMARY).is_file() and (folder / split).is_dir():
            return _cache(folder, split, settings, selection)
    if not path.is_file():
        what = (
            "neither a cache (processed_dataset/KEY) nor a hidden-state store"
            if path.is_dir()
            else "no such file or folder"
        )
        raise DataError("no-such-path", what, where=str(path), fix="check --path")
    return _file(path, settings, selection)


def _selection(settings: Settings) -> RowSelection:
    """The rows that the view table names: numbers and, where a word is none, ids; the first row by default."""
    view = settings.view
    if view.worst is not None:
        return RowSelection(worst=view.worst)
    if view.random is not None:
        return RowSelection(count=view.random, seed=view.seed)
    numbers = tuple(int(word) for word in view.rows if _is_number(word))
    ids = (*(word for word in view.rows if not _is_number(word)), *view.id)
    return RowSelection(numbers if numbers or ids else (1,), ids)


def _is_number(word: str) -> bool:
    return word.isascii() and word.removeprefix("-").isdigit()


def _cache(folder: Path, split: str, settings: Settings, selection: RowSelection) -> View:
    source = str(folder / split)
    tokenizer = _tokenizer(settings, str(read_json(folder / SUMMARY)["model_path"]))
    selected = rows_of_cache(folder / split, selection)
    return _view(source, selected, tokenizer, _newest_vocab(folder))


def _newest_vocab(folder: Path) -> VocabMask | None:
    """What the draft knows by the vocabulary chosen last for these rows."""
    files = (folder.parent.parent / "vocab_mapping").glob(f"{folder.name}-*.safetensors")
    newest = max(files, key=lambda file: file.stat().st_mtime, default=None)
    try:
        return load_file(newest)["t2d"] if newest else None
    except (OSError, SafetensorError, KeyError) as error:
        fix = "build the cache again with --overwrite"
        raise DataError(
            "vocabulary-mapping", f"not a vocabulary mapping: {error}", where=str(newest), fix=fix
        ) from error


def _store(path: Path, settings: Settings, selection: RowSelection) -> View:
    from eagle3cli.data.hidden_states.store import Store

    store = Store(path)
    selected = rows_of_store(store, settings.data.cache_dir / "processed_dataset", str(path), selection)
    return _view(str(path), selected, _tokenizer(settings, store.meta.target), store.vocab.t2d.numpy())


def _tokenizer(settings: Settings, made_with: str) -> Any:
    target = settings.target
    return load_tokenizer(
        target.model_path or made_with, revision=target.revision, trust_remote_code=target.trust_remote_code
    )


def _file(path: Path, settings: Settings, selection: RowSelection) -> View:
    if selection.worst is not None:
        caches = sorted((settings.data.cache_dir / "processed_dataset").glob(f"*/*/{on_policy.FILE}"))
        judged = f" ({', '.join(str(file.parent) for file in caches[:4])})" if caches else ""
        fix = (
            "give --train-data-path and --eval-data-path as the training had them, or with --path a hidden-state store "
            f"or a cache of its rows{judged}"
        )
        raise UsageError(
            "not-measured", "no pass has seen yet whether these replies are the target's own", where=str(path), fix=fix
        )
    config = encoder_config(settings)
    encoder = config.encoder()
    selected = rows_of_file(path, encoder, selection, preformatted=config.is_preformatted)
    return _view(str(path), selected, encoder.tokenizer, None)


def _view(source: str, selected: Sequence[SelectedRow], tokenizer: Any, known: VocabMask | None) -> View:
    size = None if known is None else int(known.sum())
    return View(source, size, tuple(show_row(one, tokenizer, known) for one in selected))


def show_row(selected: SelectedRow, tokenizer: Any, known: VocabMask | None) -> RowView:
    """One row in pieces."""
    row = selected.row
    ids = row.token_ids.tolist()
    trained = row.loss_mask.astype(bool)
    in_draft = np.ones(len(ids), dtype=bool) if known is None else known[row.token_ids]
    pieces = tuple(_pieces(row, in_draft.tolist(), tokenizer.backend_tokenizer))
    return RowView(
        number=selected.number,
        id=row.id,
        line=row.line,
        tokens=len(ids),
        trained=int(trained.sum()),
        truncated=row.truncated,
        missing=int((trained & ~in_draft).sum()),
        pieces=pieces,
        replies=tuple(_replies(row, pieces, tokenizer)),
        rejected=selected.rejected,
        on_policy=selected.on_policy,
        images=tuple(shown(image.source) for image in row.images),
    )


def _pieces(row: TokenRow, known: list[bool], backend: Any) -> Iterator[Piece]:
    """The row's pieces: each is what its tokens add to the text of the piece before."""
    ids = row.token_ids.tolist()
    trained = row.loss_mask.astype(bool).tolist()
    starts = dict(row.turns)

    def text_of(at: int, end: int) -> str:
        """Some decoders leave out a first blank, so that a token's text shows only behind another."""
        before = backend.decode(ids[start:at], skip_special_tokens=False)
        both: str = backend.decode(ids[start:end], skip_special_tokens=False)
        if before and both.startswith(before):
            return both[len(before) :]
        return str(backend.decode(ids[at:end], skip_special_tokens=False))

    role = ""
    at = 0
    start = 0
    while at < len(ids):
        role = starts.get(at, role)
        end = at + 1
        while "\ufffd" in (text := text_of(at, end)) and _may_grow(at, end, trained, starts):
            end += 1
        if "\ufffd" in text:  # bytes that never become a character: one token at a time
            end = at + 1
            text = text_of(at, at + 1)
        yield Piece(tuple(ids[at:end]), text, trained[at], all(known[at:end]), role)
        start = at
        at = end


def _may_grow(at: int, end: int, trained: list[bool], starts: dict[int, str]) -> bool:
    inside = end < len(trained) and trained[end] == trained[at] and end not in starts
    return inside and end - at < MOST_IDS_OF_A_CHARACTER


def _replies(row: TokenRow, pieces: Sequence[Piece], tokenizer: Any) -> Iterator[TrainedSpan]:
    """The row's runs of trained tokens; two replies without a token between them are two."""
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    starts = {at for at, _ in row.turns}
    texts: list[str] = []
    """By token: the text of a piece at its first token."""
    for piece in pieces:
        texts += [piece.text, *[""] * (len(piece.ids) - 1)]
    run = np.cumsum([row.loss_mask[i] != row.loss_mask[i - 1] or i in starts for i in range(len(row))])
    for _, places in groupby(np.flatnonzero(row.loss_mask).tolist(), key=lambda at: int(run[at])):
        inside = list(places)
        first = inside[0]
        last = inside[-1] + 1
        header = max((at for at in starts if at <= first), default=0)
        behind = "".join(texts[header if header < first else max(0, first - TOKENS_BEHIND) : first])
        yield TrainedSpan(
            first=first,
            last=last,
            behind=behind,
            begins=next((text for text in texts[first:last] if text), ""),
            ends=next((text for text in reversed(texts[first:last]) if text), ""),
            ended=int(row.token_ids[last - 1]) in special,
        )
