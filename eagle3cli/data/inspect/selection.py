"""Rows that a person asks for, by number, id or chance, out of a file, a cache or a hidden-state store."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from eagle3cli.data.conversations.layouts import IDS
from eagle3cli.data.sources.lines import SourceRow, parse_line
from eagle3cli.data.tokens.blocks import Item, blocks_of, encode_items
from eagle3cli.data.tokens.encode import Encoder
from eagle3cli.data.tokens.on_policy import OnPolicy, load
from eagle3cli.data.tokens.rows import Mask, TokenRow, TokenRows
from eagle3cli.errors import DataError, UsageError

if TYPE_CHECKING:
    from eagle3cli.data.hidden_states.store import Store


@dataclass(frozen=True)
class RowSelection:
    """Which rows: by number (from 1), by id, ``count`` random ones, or the ``worst`` of those that are judged."""

    numbers: tuple[int, ...] = ()
    ids: tuple[str, ...] = ()
    count: int | None = None
    seed: int = 0
    worst: int | None = None

    def draw(self, total: int) -> list[int]:
        """The random rows' numbers, ascending."""
        return sorted(random.Random(self.seed).sample(range(1, total + 1), min(self.count or 0, total)))


@dataclass(frozen=True)
class SelectedRow:
    """A row, or why it became none."""

    number: int
    """Which one of its source, from 1."""
    row: TokenRow
    rejected: str | None = None
    on_policy: dict[str, Any] | None = None
    """How far its replies are the target's own (``tokens``, ``share``, ``logprob``), where a pass has seen that."""


def rows_of_file(path: Path, encoder: Encoder, selection: RowSelection, *, preformatted: bool) -> list[SelectedRow]:
    """Rows of a file of conversations, encoded on the spot; a rejected one is a row of the file too, and is told.

    The file is read no further than needed; random rows need all of it.
    """
    selected = []
    for number, item in _sampled(path, selection) if selection.count else _matching(path, selection):
        block = encode_items(encoder, [item], str(path), preformatted=preformatted)
        selected += [SelectedRow(number, row) for row in block.rows]
        selected += [SelectedRow(number, empty_row(name, line), reason) for line, name, reason in block.rejected]
    return selected


def empty_row(name: str, line: int) -> TokenRow:
    """The place of a row without tokens."""
    return TokenRow(name, np.zeros(0, dtype=np.int32), np.zeros(0, dtype=np.uint8), line)


def _items(path: Path) -> Iterator[tuple[int, Item]]:
    return enumerate((item for block in blocks_of(path) for item in block), 1)


def _matching(path: Path, selection: RowSelection) -> list[tuple[int, Item]]:
    items: dict[int | str, tuple[int, Item]] = {}
    missing: set[int | str] = {*selection.numbers, *selection.ids}
    total = 0
    for number, item in _items(path):
        total = number
        if selection.ids and not isinstance(item, SourceRow):
            item = parse_line(*item, str(path))
        names: list[int | str] = [number, _name(item)] if isinstance(item, SourceRow) else [number]
        items |= {name: (number, item) for name in names if name in missing}
        missing.difference_update(names)
        if not missing:
            break
    order: list[int | str] = list(dict.fromkeys((*selection.numbers, *selection.ids)))
    for name in order:
        if name in missing:
            raise _no_such_row(name, total, str(path))
    return list({items[name][0]: items[name] for name in order}.values())


def _sampled(path: Path, selection: RowSelection) -> list[tuple[int, Item]]:
    """Random rows of a file of any length, of which no more than these are kept (a reservoir)."""
    generator = random.Random(selection.seed)
    count = selection.count or 0
    reservoir: list[tuple[int, Item]] = []
    for number, item in _items(path):
        if number <= count:
            reservoir.append((number, item))
        elif (place := generator.randrange(number)) < count:
            reservoir[place] = (number, item)
    return sorted(reservoir, key=itemgetter(0))


def _name(row: SourceRow) -> str:
    """The id of a row that is not encoded yet, as it will be."""
    value = row.value or {}
    return next((str(value[column]) for column in IDS if value.get(column) is not None), f"line-{row.number}")


def rows_of_cache(folder: Path, selection: RowSelection) -> list[SelectedRow]:
    """Rows of a split of a cache."""
    rows = TokenRows.open(folder)
    known = load(folder)
    numbers = _numbers(len(rows), rows.index_of, str(folder), selection, known)
    return [SelectedRow(n, rows[n - 1], on_policy=_of_row(known, n)) for n in numbers]


def _of_row(known: OnPolicy | None, number: int) -> dict[str, Any] | None:
    return known.of_row(number - 1) if known is not None and number <= len(known.sums_NP5) else None


def rows_of_store(store: Store, caches: Path, source: str, selection: RowSelection) -> list[SelectedRow]:
    """Rows of a hidden-state store; ids and roles come from the cache that it was captured from, if that still is."""
    folder = matching_cache(store, caches)
    cached_rows = None if folder is None else TokenRows.open(folder)

    def index_of(name: str) -> int | None:
        if cached_rows is None:
            fix = "give the row's number; the cache that it was captured from is gone"
            raise UsageError("conflicting-options", "a hidden-state store keeps no ids", where=source, fix=fix)
        return cached_rows.index_of(name)

    known = load(folder) if folder is not None else None
    if known is None and selection.worst is not None:
        known = _judged(store)
    selected = []
    for number in _numbers(len(store), index_of, source, selection, known):
        state = store[number - 1]
        ids = state.token_ids_S.numpy().astype(np.int32)
        mask = state.loss_mask_S.numpy().astype(np.uint8)
        other = None if cached_rows is None else cached_rows[number - 1]
        if other is not None and np.array_equal(other.token_ids, ids) and np.array_equal(other.loss_mask, mask):
            row = other
        else:
            row = TokenRow("", ids, mask, turns=_turns_of(mask))
        selected.append(SelectedRow(number, row, on_policy=_of_row(known, number)))
    return selected


def _judged(store: Store) -> OnPolicy:
    """The rows of a store, judged by the target's best tokens, which it holds."""
    from eagle3cli.data.hidden_states.rows import teacher_positions

    known = OnPolicy.empty(len(store), store.meta.target_hash)
    for number in range(len(store)):
        row = store.packed(number)
        mask_S = row.loss_mask_S.bool()
        teacher_R = teacher_positions(mask_S)
        inside_R = mask_S[teacher_R] & mask_S.roll(-1)[teacher_R] & (teacher_R < len(mask_S) - 1)
        agrees_R = row.top_R == row.token_ids_S.roll(-1)[teacher_R]
        known.sums_NP5[number, 0] = (int(inside_R.sum()), int((agrees_R & inside_R).sum()), np.nan, np.nan, np.nan)
    return known


def _turns_of(mask: Mask) -> tuple[tuple[int, str], ...]:
    """What is trained is the assistant's; whose the rest is, tokens and mask do not tell."""
    changes = np.flatnonzero(np.diff(mask, prepend=mask[:1] ^ 1))
    return tuple((int(at), "assistant" if mask[at] else "") for at in changes)


def matching_cache(store: Store, caches: Path) -> Path | None:
    """The rows, below ``caches``, that a store was captured from: those of the same lengths."""
    for file in sorted(caches.glob("*/*/dataset_info.json")):
        try:
            rows = TokenRows.open(file.parent)
        except DataError:
            continue
        if rows.lengths[: len(store)] == store.lengths:
            return file.parent
    return None


def _numbers(
    total: int,
    index_of: Callable[[str], int | None],
    source: str,
    selection: RowSelection,
    known: OnPolicy | None,
) -> Sequence[int]:
    if selection.worst:
        if known is None:
            fix = "run eagle3 hidden-states, or eagle3 train --mode online: their pass of the target sees it"
            raise UsageError(
                "not-measured", "no pass has seen yet whether these replies are the target's own", where=source, fix=fix
            )
        return [row + 1 for row in known.worst(selection.worst) if row < total]
    if selection.count:
        return selection.draw(total)
    numbers = list(selection.numbers)
    for number in numbers:
        if not 1 <= number <= total:
            raise _no_such_row(number, total, source)
    for name in selection.ids:
        index = index_of(name)
        if index is None or index >= total:
            raise _no_such_row(name, total, source)
        numbers.append(index + 1)
    return list(dict.fromkeys(numbers))


def _no_such_row(name: int | str, total: int, source: str) -> UsageError:
    if isinstance(name, int):
        return UsageError(
            "no-such-row", f"no row {name}; the rows are 1 to {total}", where=source, fix="rows are counted from 1"
        )
    return UsageError(
        "no-such-row", f"no row with the id {name!r} among {total}", where=source, fix="check the id, or give a number"
    )
