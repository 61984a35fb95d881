"""Writes a hidden-state store (``store.py``) shard by shard, and goes on where an earlier run was cut off.

Which rows a shard holds, and every size, follow from the rows' masks and the encoding: they are known before anything
is captured. A finished shard is one whose file is there under its own name, so several processes may write side by
side, each its own shards, and one that was killed and started again gives the same bytes as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from eagle3cli.data.hidden_states.rows import RowCodec, RowCounts
from eagle3cli.data.hidden_states.shard import ShardShape, StateShard, shard_name, writing_shard
from eagle3cli.data.hidden_states.store import (
    FORMAT,
    INDEX,
    MANIFEST,
    Index,
    StoreMeta,
    file_entry,
    read_index,
    read_manifest,
    read_meta,
    shard_shapes,
)
from eagle3cli.errors import DataError, Eagle3Error, UsageError
from eagle3cli.runtime.files import locked, read_json, write_json, writing
from eagle3cli.runtime.provenance import changes
from eagle3cli.runtime.report import Reporter

MB = 1_000_000
ERRORS = "errors.jsonl"
"""Beside the shards where some of what was imported could not be used."""
SHARDS_WANTED = 32
LEAST_TOKENS = 16_384
"""A small store gets about this many shards, so that a kill costs little, unless they had fewer tokens than this."""
HASHES = {
    "target_hash": "the target's config or weights",
    "data_hash": "the rows' tokens or masks",
    "images_hash": "the rows' images",
    "vocab_hash": "the tokens of the draft vocabulary",
}


@dataclass(frozen=True)
class StoreLayout:
    """Bytes of every row, and the first row of every shard (and, last, the number of rows)."""

    bytes_per_row: tuple[int, ...]
    starts: tuple[int, ...]

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self.starts) - 1

    def rows(self, shard: int) -> range:
        """The rows of a shard."""
        return range(self.starts[shard], self.starts[shard + 1])

    def bytes(self, shard: int) -> int:
        """Bytes of a shard's rows and their checksums."""
        rows = self.rows(shard)
        return sum(self.bytes_per_row[rows.start : rows.stop]) + 4 * len(rows)

    @property
    def total(self) -> int:
        """Bytes of all shards."""
        return sum(self.bytes(shard) for shard in range(self.shards))


def plan_layout(counts: RowCounts, codec: RowCodec, shard_mb: int) -> StoreLayout:
    """What every row takes on disk, and where the shards begin: of ``shard_mb`` at most, unless one row is larger."""
    sizes = codec.sizes(counts.counts_N3).tolist()
    small = max(sum(sizes) / SHARDS_WANTED, sum(sizes) / max(1, counts.tokens) * LEAST_TOKENS)
    limit = min(shard_mb * MB, small)
    starts = [0]
    filled = 0
    for number, size in enumerate(sizes):
        if filled and filled + size > limit:
            starts.append(number)
            filled = 0
        filled += size
    return StoreLayout(tuple(sizes), tuple(starts + ([len(sizes)] if sizes else [])))


class StoreWriter:
    """Fills a store; opening a folder that an interrupted run left goes on with it.

    Use as a context manager. With several processes the first one (``rank`` 0) opens the folder before the others do
    and closes it after them. ``computed`` says what else decides the last bits of the states (batch size, threads);
    going on with other values is told. Raises UsageError when the folder holds something else, DataError when it was
    made from another target, other data or other settings.
    """

    def __init__(
        self,
        folder: Path,
        meta: StoreMeta,
        layout: StoreLayout,
        index: Index,
        report: Reporter,
        *,
        sample: Mapping[str, Any] | None = None,
        computed: Mapping[str, Any] | None = None,
        rank: int = 0,
        ranks: int = 1,
    ) -> None:
        self.folder = folder
        self.meta = meta
        self.ranks = ranks
        self._lock = ExitStack()
        if rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock.enter_context(locked(folder, _busy(folder)))
        try:
            if rank == 0:
                self._open(layout, index, dict(sample or {}), dict(computed or {}), report)
            self._manifest = read_json(folder / MANIFEST)
            check_same_capture(read_meta(self._manifest, folder), meta, folder)
            self.layout = replace(layout, starts=tuple(self._manifest["starts"]))
            self._shapes = shard_shapes(meta, index, self.layout.starts)
            self.pending = [s for s in range(self.layout.shards) if not self._finished(s)]
        except BaseException:
            self.__exit__()
            raise
        if rank == 0 and self.complete and self.pending:
            self._reopen(report)
        self.done_before = self.layout.shards - len(self.pending)
        self.pending = [s for s in self.pending if s % ranks == rank]

    def _reopen(self, report: Reporter) -> None:
        """Make a complete store an unfinished one: shards that are damaged go, and are written again."""
        for shard in self.pending:
            name = shard_name(shard)
            report.warn(f"{self.folder / name}: missing or damaged; it is made again")
            self._manifest["files"].pop(name, None)
            (self.folder / name).unlink(missing_ok=True)
        self._manifest["complete"] = False
        write_json(self.folder / MANIFEST, self._manifest)

    def _open(
        self, layout: StoreLayout, index: Index, sample: dict[str, Any], computed: dict[str, Any], report: Reporter
    ) -> None:
        for leftover in self.folder.glob(".*.tmp-*"):
            leftover.unlink()
        blob = index.to_bytes()
        if not (self.folder / MANIFEST).exists():
            others = [f.name for f in self.folder.iterdir() if f.name != INDEX and not f.name.startswith("shard_")]
            if others:
                fix = "choose another --output-path"
                raise UsageError(
                    "foreign-files", f"holds other files ({others[0]}), no store", where=str(self.folder), fix=fix
                )
            _write(self.folder / INDEX, blob)
            manifest = {
                "format": FORMAT,
                "meta": asdict(self.meta),
                "complete": False,
                "sample": sample,
                "computed": [computed],
                "starts": list(layout.starts),
                "files": {INDEX: file_entry(blob)},
            }
            write_json(self.folder / MANIFEST, manifest)
            return
        manifest = read_json(self.folder / MANIFEST)
        check_same_capture(read_meta(manifest, self.folder), self.meta, self.folder)
        if file_entry(blob) != manifest["files"][INDEX]:
            fix = "capture again with --overwrite"
            raise DataError(
                "damaged-store",
                "the index differs from the one that the shards were written with",
                where=str(self.folder),
                fix=fix,
            )
        _write(self.folder / INDEX, blob)
        if computed not in manifest["computed"]:
            changed = ", ".join(changes(manifest["computed"][-1], computed, keys=computed, text="{key} {now}"))
            report.warn(f"{self.folder}: going on with {changed}; rows from here on may differ in their last bits")
            manifest["computed"].append(computed)
            write_json(self.folder / MANIFEST, manifest)

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    @property
    def shapes(self) -> list[ShardShape]:
        """What every shard will be."""
        return self._shapes

    @property
    def complete(self) -> bool:
        """Whether everything is there."""
        return bool(self._manifest["complete"])

    @property
    def bytes(self) -> int:
        """Size of the store's files; a process may ask while the first one still closes the store."""
        return sum(shape.bytes for shape in self._shapes) + sum(
            (self.folder / name).stat().st_size for name in (INDEX, MANIFEST)
        )

    @property
    def bytes_left(self) -> int:
        """Bytes of the pending shards."""
        return sum(self.layout.bytes(shard) for shard in self.pending)

    def _finished(self, shard: int) -> bool:
        """Whether a shard is there and of this store; what it holds is for ``verify`` to check."""
        try:
            entry = StateShard(self.folder / shard_name(shard), self._shapes[shard]).entry
        except DataError:
            return False
        return bool(entry == self._manifest["files"].get(shard_name(shard), entry))

    @contextmanager
    def writing(self, shard: int) -> Iterator[Callable[[int, Tensor], None]]:
        """A function that puts a row (its number, its bytes); the shard is there once the block has ended."""
        first = self.layout.starts[shard]
        with writing_shard(self.folder / shard_name(shard), self._shapes[shard]) as put:
            yield lambda number, blob: put(number - first, blob)

    def finish(self) -> None:
        """Mark the store complete, unless it is. Raises DataError where a shard is missing."""
        if self.complete:
            return
        files = {name: entry for name, entry in self._manifest["files"].items() if name == INDEX}
        for shard, shape in enumerate(self._shapes):
            files[shard_name(shard)] = StateShard(self.folder / shard_name(shard), shape).entry
        self._manifest.update(complete=True, files=files)
        write_json(self.folder / MANIFEST, self._manifest)


@dataclass(frozen=True)
class ExistingStore:
    """What an earlier run left in a folder."""

    meta: StoreMeta
    index: Index | None
    """None where it is damaged."""


def read_existing(folder: Path, report: Reporter) -> ExistingStore | None:
    """The store that an earlier run began here, None where there is none."""
    if not (folder / MANIFEST).is_file():
        return None
    manifest = read_manifest(folder)
    meta = read_meta(manifest, folder)
    try:
        blob = (folder / INDEX).read_bytes()
        if file_entry(blob) == manifest["files"][INDEX]:
            return ExistingStore(meta, read_index(blob, meta))
    except (OSError, SafetensorError, KeyError):
        pass
    report.warn(f"{folder / INDEX}: damaged; it is made anew")
    return ExistingStore(meta, None)


def discard_store(folder: Path) -> None:
    """Remove a store, finished or not; other files in the folder are left alone.

    Raises Eagle3Error while another process writes there.
    """
    if not folder.is_dir():
        return
    with locked(folder, _busy(folder)):
        for pattern in (MANIFEST, INDEX, ERRORS, "shard_*.safetensors", "shard_*.safetensors.part", ".*.tmp-*"):
            for path in folder.glob(pattern):
                path.unlink()


def _busy(folder: Path) -> Eagle3Error:
    return Eagle3Error("locked", "another process is writing here", where=str(folder), fix="wait for it, or stop it")


def _write(path: Path, blob: bytes) -> None:
    if not path.is_file() or path.read_bytes() != blob:
        with writing(path, "wb") as f:
            f.write(blob)


def check_same_capture(existing: StoreMeta, requested: StoreMeta, folder: Path) -> None:
    """Raise DataError where a store was made from something else; a target may have moved to another place."""
    old = asdict(existing)
    new = asdict(requested)
    lines = changes(
        old, new, keys=new.keys() - HASHES.keys() - {"target", "revision"}, text="- {key}: {was} there, {now} now"
    )
    lines += [f"- {content} differ" for key, content in HASHES.items() if old[key] != new[key]]
    if lines:
        raise DataError(
            "made-differently",
            "was captured differently:\n" + "\n".join(sorted(lines)),
            where=str(folder),
            fix="choose another --output-path, or pass --overwrite to capture again",
        )
