"""Rows that say what an earlier row says, exactly or nearly; the first one stays.

Near means: of all runs of three words in the two rows, at least a given share is in both (Jaccard). Pairs that may be
near are found by MinHash (:data:`BANDS` keys a row, equal keys make a pair); whether they are, the texts say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from eagle3cli.data.conversations.images import images_of
from eagle3cli.data.conversations.messages import Message
from eagle3cli.data.prepare.row_table import DUPLICATE, KEPT, NEAR_DUPLICATE, RowTable, mix, signed

Hashes = npt.NDArray[np.uint64]

BAND_HASHES = 5
BANDS = 12
"""Bands of so many hashes. Of pairs that share .8 of their words 99% meet in a band, of pairs that share .3 only 3%."""
_PAIRS = f"""
SELECT row, first FROM (
  SELECT key, row, min(row) OVER (PARTITION BY key) AS first
  FROM bands CROSS JOIN rows USING (row) WHERE disposition = {KEPT}
) WHERE row <> first GROUP BY row, first ORDER BY row, min(key)"""
"""Kept rows and the first kept row with an equal key, in the order of rows and keys."""
_RNG = np.random.default_rng(0)
_FACTORS: Hashes = _RNG.integers(0, 2**63, BANDS * BAND_HASHES, dtype=np.uint64) * 2 + np.uint64(1)
_ADDENDS: Hashes = _RNG.integers(0, 2**63, BANDS * BAND_HASHES, dtype=np.uint64)
_POWERS: Hashes = _RNG.integers(0, 2**63, 64, dtype=np.uint64) * 2 + np.uint64(1)
_KIND = np.zeros(256, np.uint8)
"""Of each byte: 1 in words of ASCII letters and digits, 2 begins another letter, 3 goes on with it, 0 is no letter."""
_KIND[[b for b in range(128) if chr(b).isalnum()]] = 1
_KIND[0xC0:] = 2
_KIND[0x80:0xC0] = 3


def mark_duplicates(rows: RowTable) -> None:
    """Mark rows whose messages an earlier row has as DUPLICATE."""
    firsts = "SELECT content, min(row) AS first FROM rows GROUP BY content HAVING count(*) > 1"
    rows.run(
        "INSERT INTO duplicates SELECT row, first, 1 "
        f"FROM rows CROSS JOIN ({firsts}) AS firsts ON rows.content = firsts.content WHERE row > first"
    )
    rows.run(f"UPDATE rows SET disposition = {DUPLICATE} WHERE row IN (SELECT row FROM duplicates)")


def shingles(messages: Sequence[Message]) -> Hashes:
    """Hashes of all runs of three words (lower case, without punctuation) of the messages, ascending, each once.

    System messages do not count: many rows share one.
    """
    contents = "\n".join(message["content"] for message in messages if message["role"] != "system")
    text = contents.lower().encode("utf-8", "replace")
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
    runs = mix(words[:-2] * _POWERS[0] + words[1:-1] * _POWERS[1] + words[2:] * _POWERS[2])
    return np.unique(runs ^ _of_images(messages))


def _of_images(messages: Sequence[Message]) -> np.uint64:
    """What sets apart the words of rows about other images: they have none in common. 0 for rows without any."""
    hashes = "".join(image.sha256 for image in images_of(messages))
    return np.uint64(int.from_bytes(blake2b(hashes.encode(), digest_size=8).digest(), "big") if hashes else 0)


def band_keys(messages: Sequence[Message]) -> list[int]:
    """The keys of a conversation by MinHash; none where it holds no word."""
    hashes = shingles(messages)
    if not len(hashes):
        return []
    least = (hashes[None, :] * _FACTORS[:, None] + _ADDENDS[:, None]).min(axis=1)
    keys: Hashes = mix((least.reshape(BANDS, BAND_HASHES) * _POWERS[:BAND_HASHES]).sum(axis=1))
    keys += np.arange(BANDS, dtype=np.uint64)
    return signed(keys)


def mark_near_duplicates(rows: RowTable, least: float, messages: Callable[[int], Sequence[Message]]) -> None:
    """Mark kept rows as NEAR_DUPLICATE where an earlier kept row shares ``least`` of the words.

    ``messages`` reads a row again by its number.
    """

    @lru_cache(maxsize=512)
    def shingles_of(row: int) -> Hashes:
        return shingles(messages(row))

    def is_kept(row: int) -> bool:
        disposition: int = rows.run("SELECT disposition FROM rows WHERE row = ?", row).fetchone()[0]
        return disposition == KEPT

    for row, first in rows.run(_PAIRS):
        if not is_kept(row) or not is_kept(first):
            continue
        share = jaccard(shingles_of(row), shingles_of(first))
        if share >= least:
            rows.mark([row], NEAR_DUPLICATE)
            rows.run("INSERT INTO duplicates VALUES (?, ?, ?)", row, first, share)


def jaccard(a: Hashes, b: Hashes) -> float:
    """Share of two sets that is in both."""
    both = len(np.intersect1d(a, b, assume_unique=True))
    return both / max(1, len(a) + len(b) - both)
