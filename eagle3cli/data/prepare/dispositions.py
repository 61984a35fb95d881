"""What is known of every row that could be read, and what becomes of it: one byte a row in memory, the rest on disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from eagle3cli.data.conversations.conversation import Conversation
from eagle3cli.data.prepare.external_sort import Block, Records

ROW = np.dtype(
    [
        ("row", "u8"),  # number of the row among those that could be read, from 0
        ("place", "u8"),  # file and line, see pack_place
        ("content", "u8"),  # 128 bits of hash of all messages
        ("check", "u8"),
        ("name", "u8"),  # hash of the id
        ("prompt", "u8"),  # hash of the first user message
    ]
)
TWIN = np.dtype([("row", "u8"), ("first", "u8"), ("share", "f4")])
"""A row that is left out because of the row at place ``first``; ``share`` of their words is the same."""

Fates = npt.NDArray[np.uint8]
KEPT, HELD_OUT, DUPLICATE, NEAR, LEFT_OUT, APART = range(6)
"""KEPT: for training; APART: left out so that an equal prompt stays on one side."""
RENAMED = 64
"""Added to the fate of a row whose id an earlier row has."""
FATE = RENAMED - 1
_LINE_BITS = 40
_BLOCK = 1 << 20


def pack_place(file: int, line: int) -> int:
    """A file's number and a line in it as one number."""
    return file << _LINE_BITS | line


def unpack_place(place: int) -> tuple[int, int]:
    """The file's number and the line."""
    return int(place) >> _LINE_BITS, int(place) & ((1 << _LINE_BITS) - 1)


def hash_text(text: str) -> int:
    """64 bits of hash."""
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Other numbers, each decided by all bits of one value; different values stay different."""
    values = values ^ (values >> np.uint64(31))
    values = values * np.uint64(0x9E3779B97F4A7C15)
    return values ^ (values >> np.uint64(29))


def note(rows: Records, conversation: Conversation, name: str, place: int) -> None:
    """Add a conversation to records of :data:`ROW`."""
    digest = conversation.digest()
    content, check = int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")
    rows.append(len(rows), place, content, check, hash_text(name), hash_text(conversation.prompt.strip()))


def count(fates: Fates, fate: int) -> int:
    """Rows with this fate."""
    return sum(int(np.count_nonzero((fates[at : at + _BLOCK] & FATE) == fate)) for at in range(0, len(fates), _BLOCK))


def kept(rows: Iterator[Block], fates: Fates, *wanted: int) -> Iterator[Block]:
    """The records of rows with one of these fates (KEPT unless given)."""
    for block in rows:
        chosen = np.isin(fates[block["row"]] & FATE, wanted or (KEPT,))
        if chosen.any():
            yield block[chosen]


def runs(blocks: Iterator[Block], *keys: str) -> Iterator[tuple[Block, Block]]:
    """Each block of sorted records with, for each record, the first one of those with equal ``keys`` before it.

    A run of equal records may go over several blocks.
    """
    last: Any = None
    for block in blocks:
        new = np.ones(len(block), bool)
        new[1:] = np.any([block[key][1:] != block[key][:-1] for key in keys], axis=0)
        if last is not None:
            new[0] = any(block[key][0] != last[key] for key in keys)
        at = np.maximum.accumulate(np.where(new, np.arange(len(block)), -1))
        first = block[np.maximum(at, 0)].copy()
        if last is not None:
            first[at < 0] = last
        last = first[-1].copy()
        yield block, first


def mark_repeated_names(rows: Records, fates: Fates) -> None:
    """Mark as RENAMED every row of the result whose id an earlier row of the result has."""
    for block, first in runs(kept(rows.sorted_by("name"), fates, KEPT, HELD_OUT), "name"):
        fates[block["row"][block["row"] != first["row"]]] |= RENAMED
