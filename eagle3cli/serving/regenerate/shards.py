"""Rows in shards ``shard_A-B.jsonl`` and ``error_A-B.jsonl``, resumable at row level after a kill at any instant.

A shard covers the input rows A to B-1, counted from 0. Its rows are first appended to a part file as they finish; a
finished shard is sorted, renamed into place and then named in the manifest. Only the manifest says what is finished.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from eagle3cli.errors import Eagle3Error, UsageError
from eagle3cli.runtime.files import disk_error, locked, read_json, well_formed, write_json, writing
from eagle3cli.runtime.provenance import changes, refuse_changes

MANIFEST = "manifest.json"
SYNC_SECONDS = 2.0

OutcomeKind = Literal["recorded", "generated", "error", "kept"]
"""Where a row came from; kept: from an earlier finished shard whose errors are being retried."""


@dataclass(frozen=True)
class RowOutcome:
    """One input row's outcome: ``value`` is the row to write, in the shard or (``by`` error) in the error file."""

    row: int
    by: OutcomeKind
    value: dict[str, Any]
    tokens: int = 0


AddOutcome = Callable[[RowOutcome], None]
"""Keeps an outcome."""
ShowNotes = Callable[..., None]
"""Shows its keyword arguments beside the progress bar; ``under_way`` are the rows' worth of replies not ended yet."""


@dataclass(frozen=True)
class ReplyShard:
    """Input rows ``first`` to ``end - 1``."""

    first: int
    end: int

    @property
    def name(self) -> str:
        """As in the file names."""
        return f"{self.first}-{self.end}"

    @property
    def rows(self) -> range:
        """The input rows."""
        return range(self.first, self.end)


class ShardFolder:
    """The folder of the shards of one input, made with one set of settings. Use it within :meth:`locked`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest: dict[str, Any] = {"made_with": {}, "shards": {}}

    def open(self, made_with: dict[str, Any], *, overwrite: bool, target_path: str = "") -> None:
        """Start, or go on with what an earlier run left; raises UsageError if that one had other settings.

        ``target_path`` is where the target lies here, for the stages after this one; it may change.
        """
        if overwrite:
            self._discard()
        new = not self.read_manifest(made_with)
        if new:
            self.manifest = {"made_with": made_with, "shards": {}}
        if new or self.manifest.get("target_path", "") != target_path:
            self.manifest["target_path"] = target_path
            write_json(self.folder / MANIFEST, self.manifest)

    def read_manifest(self, made_with: dict[str, Any]) -> bool:
        """Read what an earlier run left, if one did; changes nothing, and raises UsageError as :meth:`open` does."""
        if (self.folder / MANIFEST).exists():
            self.manifest = read_json(self.folder / MANIFEST)
            with well_formed(self.folder / MANIFEST, "a manifest of shards", "pass --overwrite to start over"):
                before = dict(self.manifest["made_with"])
                for counts in self.manifest["shards"].values():
                    counts["finished"], int(counts["errors"]), int(counts["rows"])
            refuse_changes(
                changes({**made_with, **before}, made_with, keys=made_with),
                str(self.folder),
                "choose another --output-dir, or pass --overwrite to start over",
                what="the shards there were made with other settings",
            )
            return True
        if any(self.folder.glob("shard_*.jsonl")):
            fix = "choose another --output-dir, or pass --overwrite to replace them"
            raise UsageError("foreign-files", "holds shards without a manifest", where=str(self.folder), fix=fix)
        return False

    def rows_left(self, shard: ReplyShard) -> set[int]:
        """Rows of a shard that have no outcome yet; reads the part file and leaves it as it is."""
        if self.summary(shard):
            return set()
        left = set(shard.rows)
        path = self._path(shard, ".part")
        if path.exists():
            with path.open("rb") as f:
                for line in f:
                    with suppress(ValueError, TypeError, KeyError):  # the last line may be torn
                        left.discard(json.loads(line)["row"])
        return left

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep a second process out of the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        fix = "wait for it, or choose another --output-dir"
        with locked(
            self.folder / ".lock", UsageError("locked", "another process writes there", where=str(self.folder), fix=fix)
        ):
            yield

    def summary(self, shard: ReplyShard) -> dict[str, int] | None:
        """Counts of a finished shard (rows, errors, recorded, generated, tokens), None while it is not finished."""
        counts: dict[str, int] | None = self.manifest["shards"].get(shard.name)
        return counts if counts and counts["finished"] else None

    def part(self, shard: ReplyShard) -> PartFile:
        """The part file of an unfinished shard, with what earlier runs appended."""
        return PartFile(self._path(shard, ".part"))

    def left_part(self, shard: ReplyShard) -> PartFile | None:
        """The part file that an earlier run left; one of a finished shard is dropped."""
        path = self._path(shard, ".part")
        if self.summary(shard):
            path.unlink(missing_ok=True)
        return PartFile(path) if path.exists() else None

    def reopen(self, shard: ReplyShard) -> int:
        """Turn a finished shard with errors back into an unfinished one without them; returns how many."""
        counts = self.summary(shard)
        if not counts or not counts["errors"]:
            return 0
        failed = {int(row["row"]) for row in read_rows(self._path(shard, "error"))}
        rows = [row for row in shard.rows if row not in failed]
        with writing(self._path(shard, ".part")) as f:
            for row, value in zip(rows, read_rows(self._path(shard, "shard")), strict=True):
                f.write(_line(RowOutcome(row, "kept", value)))
        self._update_manifest(shard, {**counts, "finished": 0})
        return len(failed)

    def finish(self, shard: ReplyShard, part: PartFile) -> None:
        """Write the shard and its errors in input order, note it as finished, drop the part file."""
        if sorted(part.done) != list(shard.rows):
            fix = "delete the file and run again"
            raise Eagle3Error("row-outcomes", "not every row has one outcome", where=str(part.path), fix=fix)
        errors = [row for row in shard.rows if part.done[row].by == "error"]
        part.write_values(self._path(shard, "shard"), [row for row in shard.rows if part.done[row].by != "error"])
        if errors:
            part.write_values(self._path(shard, "error"), errors)
        else:
            self._path(shard, "error").unlink(missing_ok=True)
        counts = self.manifest["shards"].get(shard.name) or {}
        for name in ("recorded", "generated"):
            counts[name] = counts.get(name, 0) + sum(entry.by == name for entry in part.done.values())
        tokens = counts.get("tokens", 0) + sum(entry.tokens for entry in part.done.values())
        self._update_manifest(
            shard, {**counts, "tokens": tokens, "rows": len(part.done), "errors": len(errors), "finished": 1}
        )
        part.remove()

    def _update_manifest(self, shard: ReplyShard, counts: dict[str, int]) -> None:
        self.manifest["shards"][shard.name] = counts
        write_json(self.folder / MANIFEST, self.manifest)

    def _path(self, shard: ReplyShard, kind: str) -> Path:
        return self.folder / f"{kind}_{shard.name}.jsonl"

    def _discard(self) -> None:
        (self.folder / MANIFEST).unlink(missing_ok=True)
        for kind in ("shard", "error", ".part"):
            for path in self.folder.glob(f"{kind}_*.jsonl"):
                path.unlink()


@dataclass(frozen=True, slots=True)
class PartEntry:
    """Where one outcome's value stands in a part file."""

    by: OutcomeKind
    tokens: int
    offset: int
    length: int


class PartFile:
    """Outcomes in the order they came, one JSON line each; a last line that a kill tore is dropped.

    Memory holds where each value stands, not the values.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.done: dict[int, PartEntry] = {}
        self._synced = time.monotonic()
        try:
            self._file = path.open("a+b")
            self._end = self._read()
            self._file.truncate(self._end)
        except OSError as error:
            raise disk_error(error, path) from error

    def add(self, outcome: RowOutcome) -> None:
        """Append one outcome; it survives a kill of the process at once, and of the machine after some seconds."""
        line = _line(outcome).encode("utf-8", "replace")
        try:
            self._file.write(line)
            self._file.flush()
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self.sync()
        except OSError as error:
            raise disk_error(error, self.path) from error
        self._index(outcome.row, outcome.by, outcome.tokens, line)

    def sync(self) -> None:
        """Wait until all outcomes are on the disk."""
        os.fsync(self._file.fileno())
        self._synced = time.monotonic()

    def write_values(self, path: Path, rows: Sequence[int]) -> None:
        """Write the values of these rows, one JSON line each."""
        with writing(path, "wb") as f:
            for row in rows:
                self._file.seek(self.done[row].offset)
                f.write(self._file.read(self.done[row].length) + b"\n")

    def close(self) -> None:
        """Sync and close; a later run goes on from here."""
        try:
            self.sync()
            self._file.close()
        except OSError as error:
            raise disk_error(error, self.path) from error

    def remove(self) -> None:
        """The shard is finished."""
        self._file.close()
        self.path.unlink()

    def _read(self) -> int:
        """Take in what is there; returns where its whole lines end."""
        self._end = 0
        self._file.seek(0)
        for line in self._file:
            try:
                entry = json.loads(line)
                row = entry["row"]
                by = entry["by"]
                tokens = entry["tokens"]
                if not line.endswith(b"\n") or _VALUE not in line or not isinstance(row, int):
                    break
            except (ValueError, TypeError, KeyError, RecursionError):
                break
            self._index(row, by, tokens, line)
        return self._end

    def _index(self, row: int, by: OutcomeKind, tokens: int, line: bytes) -> None:
        start = line.index(_VALUE) + len(_VALUE)
        self.done[row] = PartEntry(by, tokens, self._end + start, len(line) - start - len(b"}\n"))
        self._end += len(line)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """Rows of a shard or error file."""
    with path.open("rb") as f:
        for line in f:
            yield json.loads(line)


_VALUE = b', "value": '
"""Before it a part file's lines hold numbers and one word, behind it the row as it will stand in the shard."""


def _line(outcome: RowOutcome) -> str:
    value = json.dumps(outcome.value, ensure_ascii=False)
    return f'{{"row": {outcome.row}, "by": "{outcome.by}", "tokens": {outcome.tokens}, "value": {value}}}\n'


def failed(row: int, line_number: int, row_id: str, reason: str) -> RowOutcome:
    """The outcome of a row that has no replies; it stands in its file at ``line_number``, from 1."""
    return RowOutcome(row, "error", {"row": row, "line": line_number, "id": row_id, "reason": reason})
