"""What is known of every readable row, and what becomes of it: a table on disk, so that rows cost no memory."""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eagle3cli.data.conversations.conversation import Conversation

KEPT, HELD_OUT, DUPLICATE, NEAR_DUPLICATE, LEFT_OUT, APART = range(6)
"""Dispositions. KEPT: for training; APART: left out so that an equal prompt stays on one side."""
_BATCH = 8192
_SCHEMA = """
PRAGMA journal_mode = OFF;  -- a table that lives as long as its process is never rolled back
PRAGMA synchronous = OFF;
PRAGMA cache_size = -32768;
CREATE TABLE rows (
  row INTEGER PRIMARY KEY,   -- among those that could be read, from 0
  file INTEGER, line INTEGER,
  offset INTEGER,            -- of its line in the spool file, where there is one
  repaired INTEGER,          -- whether its line was repaired to be read
  content BLOB,              -- hash of all messages
  name INTEGER,              -- hash of the id
  prompt INTEGER,            -- hash of the first user message; its order is that in which prompts are drawn
  disposition INTEGER DEFAULT 0,
  renamed INTEGER DEFAULT 0  -- whether an earlier row of the result has its id
);
CREATE TABLE duplicates (row INTEGER PRIMARY KEY, first INTEGER, share REAL);
CREATE TABLE bands (key INTEGER, row INTEGER);
CREATE TABLE held_out_prompts (prompt INTEGER PRIMARY KEY);
"""


class RowTable:
    """The rows of one result, numbered from 0; a temporary SQLite file in ``folder``. Use it in a ``with`` block.

    ``seed`` decides the order in which prompts are drawn.
    """

    def __init__(self, folder: Path, seed: int) -> None:
        # Without locks, which some network filesystems lack: no other process opens the file.
        self._database = sqlite3.connect(f"{(folder.absolute() / 'rows.sqlite').as_uri()}?nolock=1", uri=True)
        self._database.executescript(_SCHEMA)
        self._salt = np.random.default_rng(seed).integers(0, 2**63, dtype=np.uint64)
        self._count = 0
        self._pending: list[tuple[Any, ...]] = []
        self._prompts: list[int] = []
        self._bands: list[tuple[int, int]] = []

    def __enter__(self) -> RowTable:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._database.close()
        if isinstance(error, sqlite3.OperationalError):
            code = errno.ENOSPC if error.sqlite_errorcode == sqlite3.SQLITE_FULL else errno.EIO
            raise OSError(code, os.strerror(code)) from error

    def __len__(self) -> int:
        return self._count

    def add(
        self, conversation: Conversation, name: str, file: int, line: int, *, offset: int = 0, repaired: bool = False
    ) -> None:
        """Add a conversation that stands in a line of a file, both by number."""
        prompt = _hash(conversation.prompt_key)
        self._pending.append(
            (self._count, file, line, offset, repaired, conversation.digest(), _hash(name, signed=True))
        )
        self._prompts.append(prompt)
        self._count += 1
        if len(self._pending) == _BATCH:
            self._flush()

    def add_bands(self, keys: Iterable[int]) -> None:
        """Note the keys by which the newest row may meet near duplicates."""
        self._bands += [(key, self._count - 1) for key in keys]

    def _flush(self) -> None:
        if not self._pending and not self._bands:
            return
        prompts = signed(mix(np.array(self._prompts, np.uint64) ^ self._salt))
        rows = ((*row, prompt) for row, prompt in zip(self._pending, prompts, strict=True))
        columns = "(row, file, line, offset, repaired, content, name, prompt)"
        self._database.executemany(f"INSERT INTO rows {columns} VALUES (?, ?, ?, ?, ?, ?, ?, ?)", rows)
        self._database.executemany("INSERT INTO bands VALUES (?, ?)", self._bands)
        self._pending.clear()
        self._prompts.clear()
        self._bands.clear()

    def run(self, statement: str, *values: Any) -> sqlite3.Cursor:
        """Run a statement over ``rows`` and ``duplicates``."""
        self._flush()
        return self._database.execute(statement, values)

    def run_many(self, statement: str, values: Iterable[Sequence[Any]]) -> None:
        """Run a statement once for each of ``values``."""
        self._flush()
        self._database.executemany(statement, values)

    def count(self, *dispositions: int, first: int = 0, end: int | None = None) -> int:
        """Rows with one of these dispositions among ``first`` to ``end - 1``."""
        end = len(self) if end is None else end
        among = ", ".join(map(str, dispositions))
        where = f"disposition IN ({among}) AND row >= ? AND row < ?"
        return int(self.run(f"SELECT count(*) FROM rows WHERE {where}", first, end).fetchone()[0])

    def mark(self, rows: Iterable[int], disposition: int) -> None:
        """Give rows a disposition."""
        self.run_many("UPDATE rows SET disposition = ? WHERE row = ?", ((disposition, row) for row in rows))

    def mark_repeated_names(self) -> None:
        """Mark as renamed every row of the result whose id an earlier row of the result has."""
        in_result = f"disposition IN ({KEPT}, {HELD_OUT})"
        repeated = f"SELECT name, min(row) AS first FROM rows WHERE {in_result} GROUP BY name HAVING count(*) > 1"
        self.run(
            f"UPDATE rows SET renamed = 1 FROM ({repeated}) AS repeated "
            f"WHERE {in_result} AND rows.name = repeated.name AND row > first"
        )


def _hash(text: str, *, signed: bool = False) -> int:
    return int.from_bytes(blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big", signed=signed)


def mix(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Other numbers, each decided by all bits of one value; different values stay different."""
    values = values ^ (values >> np.uint64(31))
    values = values * np.uint64(0x9E3779B97F4A7C15)
    return values ^ (values >> np.uint64(29))


def signed(values: npt.NDArray[np.uint64]) -> list[int]:
    """Unsigned numbers as SQLite's signed ones, in the same order."""
    shifted: list[int] = (values ^ np.uint64(1 << 63)).view(np.int64).tolist()
    return shifted


@contextmanager
def work_folder(folder: Path) -> Iterator[Path]:
    """A folder in ``folder`` for what is needed only until a result is whole; SQLite's own files go there, too."""
    work = folder / f".work.tmp-{os.getpid()}"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    before = os.environ.get("SQLITE_TMPDIR")
    os.environ["SQLITE_TMPDIR"] = str(work)
    try:
        yield work
    finally:
        if before is None:
            del os.environ["SQLITE_TMPDIR"]
        else:
            os.environ["SQLITE_TMPDIR"] = before
        shutil.rmtree(work, ignore_errors=True)
