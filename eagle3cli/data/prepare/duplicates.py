"""Rows that say what an earlier row says, exactly or nearly; the first one stays.

Near means: of all runs of three words in the two rows, at least a given share is in both (Jaccard). Pairs that may be
near are found by MinHash (:data:`BANDS` keys a row, equal keys make a pair); whether they are, the texts say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from eagle3cli.data.conversations.messages import Message
from eagle3cli.data.prepare.dispositions import DUPLICATE, KEPT, NEAR, TWIN, Fates, kept, mix, runs
from eagle3cli.data.prepare.external_sort import Records

Hashes = npt.NDArray[np.uint64]

BANDS, BAND_HASHES = 12, 5
"""Of pairs that share .8 of their words 99% meet in a band, of pairs that share .3 only 3%."""
_BAND = np.dtype([("key", "u8"), ("row", "u8")])
_PAIR = np.dtype([("row", "u8"), ("other", "u8")])
_RNG = np.random.default_rng(0)
_FACTORS: Hashes = _RNG.integers(0, 2**63, BANDS * BAND_HASHES, dtype=np.uint64) * 2 + np.uint64(1)
_ADDENDS: Hashes = _RNG.integers(0, 2**63, BANDS * BAND_HASHES, dtype=np.uint64)
_POWERS: Hashes = _RNG.integers(0, 2**63, 64, dtype=np.uint64) * 2 + np.uint64(1)
_KIND = np.zeros(256, np.uint8)
"""Of each byte: 1 in words of ASCII letters and digits, 2 begins another letter, 3 goes on with it, 0 is no letter."""
_KIND[[b for b in range(128) if chr(b).isalnum()]] = 1
_KIND[0xC0:] = 2
_KIND[0x80:0xC0] = 3


def mark_duplicates(rows: Records, fates: Fates, twins: Records) -> None:
    """Mark rows whose messages an earlier row has as DUPLICATE; ``twins`` gets a TWIN for each."""
    for block, first in runs(rows.sorted_by("content"), "content", "check"):
        repeated = block["row"] != first["row"]
        found = np.zeros(int(repeated.sum()), TWIN)
        found["row"], found["first"], found["share"] = block["row"][repeated], first["place"][repeated], 1
        fates[found["row"]] = DUPLICATE
        twins.extend(found)


def shingles(messages: Sequence[Message]) -> Hashes:
    """Hashes of all runs of three words (lower case, without punctuation) of what is said, ascending, each once.

    System messages do not count: many rows share one.
    """
    said = "\n".join(message["content"] for message in messages if message["role"] != "system")
    text = said.lower().encode("utf-8", "replace")
    bytes_ = np.frombuffer(text, np.uint8)
    kinds = _KIND[bytes_]
    inside = kinds > 0
    begins = inside & (kinds != 3)
    begins[1:] &= ~((kinds[1:] == 1) & (kinds[:-1] == 1))
    begins = begins[inside]
    starts = np.flatnonzero(begins)
    if not len(starts):
        return np.zeros(0, np.uint64)
    word_bytes = bytes_[inside].astype(np.uint64) + np.uint64(1)
    position = np.arange(len(word_bytes)) - starts[np.cumsum(begins) - 1]
    words = mix(np.add.reduceat(word_bytes * _POWERS[position & 63], starts))
    words = np.pad(words, (0, max(0, 3 - len(words))))
    return np.unique(mix(words[:-2] * _POWERS[0] + words[1:-1] * _POWERS[1] + words[2:] * _POWERS[2]))


class NearDuplicates:
    """Collects the keys of rows as they are read; :meth:`mark` then finds the near duplicates."""

    def __init__(self, folder: Path, least: float) -> None:
        self.folder, self.least = folder, least
        self.bands = Records(_BAND, folder)

    def add(self, row: int, messages: Sequence[Message]) -> None:
        """Note row number ``row``."""
        hashes = shingles(messages)
        if not len(hashes):
            return
        least = (hashes[None, :] * _FACTORS[:, None] + _ADDENDS[:, None]).min(axis=1)
        keys = np.empty(BANDS, _BAND)
        keys["key"] = mix((least.reshape(BANDS, BAND_HASHES) * _POWERS[:BAND_HASHES]).sum(axis=1))
        keys["key"] += np.arange(BANDS, dtype=np.uint64)
        keys["row"] = row
        self.bands.extend(keys)

    def mark(self, rows: Records, fates: Fates, twins: Records, messages: Callable[[int], Sequence[Message]]) -> None:
        """Mark kept rows as NEAR where an earlier kept row is near; ``messages`` reads a row again by its number."""

        @lru_cache(maxsize=512)
        def again(row: int) -> Hashes:
            return shingles(messages(row))

        pairs = Records(_PAIR, self.folder)
        for block, first in runs(kept(self.bands.sorted_by("key"), fates), "key"):
            other = block["row"] != first["row"]
            found = np.zeros(int(other.sum()), _PAIR)
            found["row"], found["other"] = block["row"][other], first["row"][other]
            pairs.extend(found)
        for block in pairs.sorted_by("row"):
            for row, other in dict.fromkeys(zip(block["row"].tolist(), block["other"].tolist(), strict=True)):
                if fates[row] != KEPT or fates[other] != KEPT:
                    continue
                share = jaccard(again(row), again(other))
                if share >= self.least:
                    fates[row] = NEAR
                    twins.append(row, int(rows[other]["place"]), share)
        pairs.close()


def jaccard(a: Hashes, b: Hashes) -> float:
    """Share of two sets that is in both."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / max(1, len(a) + len(b) - both)
