"""Several hidden-state stores of one target read as one: their rows follow one another."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path

from eagle3cli.data.hidden_states.rows import PackedRow, RowCodec
from eagle3cli.data.hidden_states.store import Store, StoreMeta
from eagle3cli.data.tokens.vocab import VocabMapping
from eagle3cli.errors import UsageError

SHARED = {
    "target_hash": "target",
    "aux_layers": "auxiliary layers",
    "hidden_size": "hidden size",
    "vocab_size": "vocabulary size",
}
"""What must be equal, in words; encodings and types may differ."""


class Stores:
    """Rows of all stores, numbered from 0 through; the first store's draft vocabulary is that of all.

    Raises UsageError where the stores were not captured from the same target and layers.
    """

    def __init__(self, stores: Sequence[Store]) -> None:
        self.stores = list(stores)
        first = self.stores[0]
        for other in self.stores[1:]:
            differs = [said for name, said in SHARED.items() if getattr(other.meta, name) != getattr(first.meta, name)]
            if differs:
                fix = "train on stores of one target and the same --aux-layers"
                what = f"differs from {first.folder} in {', '.join(differs)}"
                raise UsageError(what, where=str(other.folder), fix=fix)
        self.lengths: list[int] = [length for store in self.stores for length in store.lengths]
        self._starts = list(accumulate((len(store) for store in self.stores), initial=0))

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def meta(self) -> StoreMeta:
        """The first store's meta."""
        return self.stores[0].meta

    @property
    def vocab(self) -> VocabMapping:
        """The first store's draft vocabulary."""
        return self.stores[0].vocab

    @property
    def codecs(self) -> list[RowCodec]:
        """The codec of each store."""
        return [store.codec for store in self.stores]

    @property
    def key(self) -> str:
        """Identifies the rows and what encoding did to them."""
        return "+".join(f"{store.meta.data_hash}:{store.meta.encoding}" for store in self.stores)

    def at(self, index: int) -> tuple[int, int]:
        """Number of the store that holds a row, and the row's number there."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        store = bisect_right(self._starts, index) - 1
        return store, index - self._starts[store]

    def packed(self, index: int) -> PackedRow:
        """A row whose states are still encoded."""
        store, row = self.at(index)
        return self.stores[store].packed(row)

    def size(self, index: int) -> int:
        """Bytes of a row."""
        store, row = self.at(index)
        return self.stores[store].size(row)


def open_stores(folders: Sequence[Path]) -> Stores:
    """The stores in these folders."""
    return Stores([Store(folder) for folder in folders])
