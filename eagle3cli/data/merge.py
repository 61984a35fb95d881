"""eagle3 merge: the shards of `regenerate` to a training and an evaluation file.

Memory holds some bytes a row (place, length and hashes), never rows, so files larger than RAM are no matter.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eagle3cli.data import manifest
from eagle3cli.data.conversations import to_conversation
from eagle3cli.data.ledger import ERRORS, Ledger
from eagle3cli.data.sources import Line, parse_line, read_raw_lines
from eagle3cli.errors import DataError, UsageError
from eagle3cli.runtime.files import writing
from eagle3cli.runtime.report import Reporter
from eagle3cli.runtime.stop import catch_stop
from eagle3cli.settings.tables import Merge

MANIFEST, TRAIN, EVAL = "merge.json", "train.jsonl", "eval.jsonl"
Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Merged:
    """The folder with the result, its counts, and whether an earlier run had made it."""

    folder: Path
    summary: dict[str, Any]
    already: bool


@dataclass
class Rows:
    """Where every good row stands, and what it must not share with a row of the other side."""

    shard: array[int] = field(default_factory=lambda: array("L"))
    line: array[int] = field(default_factory=lambda: array("Q"))
    offset: array[int] = field(default_factory=lambda: array("Q"))
    length: array[int] = field(default_factory=lambda: array("Q"))
    whole: array[int] = field(default_factory=lambda: array("Q"))
    """Hash of all messages."""
    name: array[int] = field(default_factory=lambda: array("Q"))
    """Hash of the id."""
    prompt: array[int] = field(default_factory=lambda: array("Q"))
    """Hash of the first user message."""

    def __len__(self) -> int:
        return len(self.offset)


def merge(options: Merge, report: Reporter) -> Merged:
    """Write train.jsonl, eval.jsonl and errors.jsonl from the shards of a folder.

    Raises UsageError where the wished sizes cannot be had or the result exists, DataError where there are no shards.
    """
    shards, error_files = shards_of(options.input_dir)
    inputs = [*shards, *error_files]
    chosen = {**options.model_dump(mode="json", exclude={"input_dir", "output_dir", "overwrite"})}
    chosen["eval_size_set"] = "eval_size" in options.model_fields_set
    folder = options.output_dir
    before = None if options.overwrite else manifest.finished(folder / MANIFEST, chosen, inputs)
    if before is not None:
        return Merged(folder, before["summary"], already=True)
    described = manifest.describe(inputs)
    manifest.begin(folder / MANIFEST, (TRAIN, EVAL, ERRORS), overwrite=options.overwrite)
    with writing(folder / ERRORS) as errors:
        ledger = Ledger(errors)
        rows = _scan(shards, options, ledger, report)
        kept = _without_duplicates(rows, shards, ledger)
        groups = group(_column(rows.name)[kept], _column(rows.prompt)[kept])
        train, held_out = (kept[side] for side in split(groups, options, shown=str(options.input_dir)))
        _copy(shards, rows, train, folder / TRAIN, report)
        _copy(shards, rows, held_out, folder / EVAL, report)
        ledger.written = len(train) + len(held_out)
        if ledger.written < len(kept):
            ledger.left_out["more than the sizes asked for"] = len(kept) - ledger.written
    failed = sum(1 for file in error_files for _ in read_raw_lines(file))
    counts = {"shards": len(shards), "failed_rows": failed, "train_rows": len(train), "eval_rows": len(held_out)}
    summary = {**ledger.summary(), **counts}
    manifest.finish(folder / MANIFEST, chosen, described, (TRAIN, EVAL, ERRORS), summary)
    return Merged(folder, summary, already=False)


def shards_of(folder: Path) -> tuple[list[Path], list[Path]]:
    """The shard files and the error files of a folder, in the order of their rows."""
    if not folder.is_dir():
        raise DataError("no such folder", where=str(folder), fix="pass --input-dir, or run `eagle3 regenerate` first")

    def found(kind: str) -> list[Path]:
        pattern = f"{kind}_*-*.jsonl"
        return sorted((p for p in folder.glob(pattern) if p.is_file()), key=lambda p: (_first_row(p), p.name))

    shards = found("shard")
    if not shards:
        raise DataError(
            "no shard_A-B.jsonl files in the folder", where=str(folder), fix="run `eagle3 regenerate` first"
        )
    return shards, found("error")


def _first_row(path: Path) -> int:
    first = path.stem.partition("_")[2].partition("-")[0]
    return int(first) if first.isdigit() else 0


def _scan(shards: Sequence[Path], options: Merge, ledger: Ledger, report: Reporter) -> Rows:
    rows = Rows()
    with report.task("reading shards") as task, catch_stop(report) as stop:
        for number, path in enumerate(shards):
            for offset, raw, line in _located(path):
                ledger.read += 1
                if ledger.read % 256 == 0:
                    stop.check("nothing was written")
                    task.advance(256)
                _take(rows, number, offset, raw, line, options, ledger)
        task.advance(ledger.read % 256)
    if not len(rows):
        raise DataError(f"no usable rows in {len(shards)} shards ({ledger.read} read)", where=str(shards[0].parent))
    return rows


def _located(path: Path) -> Iterator[tuple[int, bytes, Line]]:
    offset = 0
    with path.open("rb") as f:
        for number, raw in enumerate(f, 1):
            if raw.strip():
                yield offset, raw, parse_line(number, raw, str(path))
            offset += len(raw)


def _take(rows: Rows, shard: int, offset: int, raw: bytes, line: Line, options: Merge, ledger: Ledger) -> None:
    try:
        if line.value is None:
            raise DataError(line.problem or "unreadable")
        conversation = to_conversation(line.value)
        if any("surrogate" in repair for repair in line.repairs):
            raise DataError("holds a lone surrogate (prepare repairs those)")
    except DataError as error:
        ledger.drop("rejected", line.place, str((line.value or {}).get("id") or ""), error.what)
        return
    if options.drop_truncated and "length" in conversation.finish:
        ledger.drop("filtered", line.place, conversation.id, "a reply was cut at the length limit")
        return
    rows.shard.append(shard)
    rows.line.append(line.number)
    rows.offset.append(offset)
    rows.length.append(len(raw))
    rows.whole.append(int.from_bytes(conversation.digest()[:8], "big"))
    rows.name.append(_hash(conversation.id or f"{shard}:{offset}"))
    rows.prompt.append(_hash(conversation.prompt.strip()))


def _without_duplicates(rows: Rows, shards: Sequence[Path], ledger: Ledger) -> Numbers:
    """Numbers of the rows whose messages no earlier row has."""
    _, first, which = np.unique(_column(rows.whole), return_index=True, return_inverse=True)
    leaders = first[which]
    for row in (leaders != np.arange(len(rows))).nonzero()[0].tolist():
        place, before = (f"{shards[rows.shard[r]]}:{rows.line[r]}" for r in (row, int(leaders[row])))
        with shards[rows.shard[row]].open("rb") as f:
            f.seek(rows.offset[row])
            value = parse_line(rows.line[row], f.read(rows.length[row])).value or {}
        ledger.drop("duplicate", place, str(value.get("id") or ""), f"duplicate of {before}")
    return np.sort(first).astype(np.int64)


def _column(values: array[int]) -> npt.NDArray[np.uint64]:
    return np.frombuffer(values, dtype=np.uint64)


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest(), "big")


def group(names: npt.NDArray[np.uint64], prompts: npt.NDArray[np.uint64]) -> Numbers:
    """A number for each row, equal for rows that share an id or a first user message (also through other rows)."""
    own = np.arange(len(names), dtype=np.int64)
    parent = own.copy()
    for key in (names, prompts):
        _, first, which = np.unique(key, return_index=True, return_inverse=True)
        leaders = first[which]
        for row in (leaders != own).nonzero()[0]:
            a, b = _root(parent, int(row)), _root(parent, int(leaders[row]))
            parent[max(a, b)] = min(a, b)
    for row in (parent != own).nonzero()[0]:
        parent[row] = _root(parent, int(row))
    return parent


def _root(parent: Numbers, row: int) -> int:
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = int(parent[row])
    return row


def split(groups: Numbers, options: Merge, *, shown: str = "") -> tuple[Numbers, Numbers]:
    """Row numbers for training and evaluation, each in the order of the shards; sizes are exact.

    Groups of equal rows stay on one side. Raises UsageError where the sizes cannot be had.
    """
    total = len(groups)
    asked = "eval_size" in options.model_fields_set
    eval_size = options.eval_size if asked else min(options.eval_size, total // 10)
    rng = np.random.default_rng(options.seed)
    roots, sizes = np.unique(groups, return_counts=True)
    order = rng.permutation(len(roots))
    wanted, held_roots = eval_size, []
    for index in order:
        if not wanted:
            break
        if sizes[index] <= wanted:
            held_roots.append(roots[index])
            wanted -= int(sizes[index])
    held = np.isin(groups, np.array(held_roots, dtype=np.int64))
    rest = (~held).nonzero()[0]
    train_size = len(rest) if options.train_size is None else options.train_size
    if wanted or train_size > len(rest) or not train_size:
        least = f"{eval_size:,} for evaluation and {max(1, options.train_size or 1):,} for training"
        where = "merge.train_size" if options.train_size is not None else "merge.eval_size"
        what = f"{shown}: {total:,} different rows are too few for {least}"
        raise UsageError(what, where=where, fix="ask for fewer with --eval-size and --train-size")
    if train_size < len(rest):
        rest = np.sort(rng.permutation(rest)[:train_size])
    return rest, held.nonzero()[0]


def _copy(shards: Sequence[Path], rows: Rows, chosen: Numbers, path: Path, report: Reporter) -> None:
    with writing(path, "wb") as out, report.task(f"writing {path.name}", total=len(chosen)) as task:
        current, source = -1, None
        try:
            for row in chosen.tolist():
                if rows.shard[row] != current:
                    if source is not None:
                        source.close()
                    current = rows.shard[row]
                    source = shards[current].open("rb")
                assert source is not None
                source.seek(rows.offset[row])
                raw = source.read(rows.length[row])
                out.write(raw.removeprefix(b"\xef\xbb\xbf").rstrip(b"\r\n") + b"\n")
                task.advance()
        finally:
            if source is not None:
                source.close()
