"""Writes a hidden-state store (``data/store.py``) shard by shard, and goes on where an earlier capture was cut off.

Which rows a shard holds follows from the rows' masks alone, so every size is known before anything is captured, and
a capture that was killed and resumed gives the same bytes as one that was not.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from eagle3cli.data.rows import TokenRow
from eagle3cli.data.store import (
    FORMAT,
    INDEX,
    MANIFEST,
    STATS,
    StateRow,
    StoreMeta,
    aux_count,
    damaged,
    read_meta,
    shard_name,
    teacher_positions,
)
from eagle3cli.data.vocab import VocabMapping
from eagle3cli.errors import DataError, Eagle3Error, ModelError, UsageError
from eagle3cli.runtime.files import read_json, write_json, writing
from eagle3cli.runtime.report import Reporter

RMS_ROWS = 65536
"""Auxiliary rows, from the first shard on, whose RMS is taken."""


HASHES = {
    "target_hash": "the target's config or weights",
    "data_hash": "the rows' tokens or masks",
    "vocab_hash": "the tokens of the draft vocabulary",
}


@dataclass(frozen=True)
class Plan:
    """The size of every row and the first row of every shard (and, last, the number of rows)."""

    counts_N3: Tensor
    """int64: tokens, auxiliary rows and teacher positions of each row."""
    starts: tuple[int, ...]
    bytes_per_row: tuple[int, ...]
    data_hash: str

    @property
    def shards(self) -> int:
        """Number of shards."""
        return len(self.starts) - 1

    def shard_rows(self, shard: int) -> range:
        """The rows of a shard."""
        return range(self.starts[shard], self.starts[shard + 1])

    def shard_bytes(self, shard: int) -> int:
        """Bytes of a shard's tensors."""
        return sum(self.bytes_per_row[self.starts[shard] : self.starts[shard + 1]])


def plan_store(rows: Iterable[TokenRow], *, hidden_size: int, aux_layers: int, shard_mb: int) -> Plan:
    """Read every row's mask once: what it will take on disk, and where the shards begin."""
    counts, sizes, starts, filled = [], [], [0], 0
    digest = blake2b(digest_size=16)
    for number, row in enumerate(rows):
        teacher = teacher_positions(torch.from_numpy(row.loss_mask.astype(bool)))
        tokens, aux, last = len(row), aux_count(teacher), len(teacher)
        size = tokens * 5 + aux * aux_layers * hidden_size * 2 + last * (hidden_size * 2 + 4)
        if filled and filled + size > shard_mb * 1_000_000:
            starts.append(number)
            filled = 0
        filled += size
        counts.append((tokens, aux, last))
        sizes.append(size)
        digest.update(tokens.to_bytes(8, "little") + row.token_ids.astype("<i4").tobytes())
        digest.update(row.loss_mask.astype("u1").tobytes())
    if counts:
        starts.append(len(counts))
    return Plan(torch.tensor(counts, dtype=torch.int64).reshape(-1, 3), tuple(starts), tuple(sizes), digest.hexdigest())


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Write a safetensors file atomically; returns its entry in the manifest."""
    blob = save(tensors)
    with writing(path, "wb") as f:
        f.write(blob)
    return {"bytes": len(blob), "blake2b": blake2b(blob, digest_size=16).hexdigest()}


class StoreWriter:
    """Fills a store shard by shard; opening a folder that an interrupted capture left goes on with it.

    Use as a context manager. Raises UsageError when the folder holds something else, DataError when it was captured
    from another target, other data or other settings.
    """

    def __init__(self, folder: Path, meta: StoreMeta, plan: Plan, vocab: VocabMapping, report: Reporter) -> None:
        self.folder, self.meta, self.plan = folder, meta, plan
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _lock(folder)
        try:
            self._open(vocab, report)
        except BaseException:
            os.close(self._lock)
            raise

    def _open(self, vocab: VocabMapping, report: Reporter) -> None:
        for leftover in self.folder.glob(".*.tmp-*"):
            leftover.unlink()
        if (self.folder / MANIFEST).exists():
            self._manifest = read_json(self.folder / MANIFEST)
            _refuse_other(read_meta(self._manifest, self.folder), self.meta, self.folder)
            entries = self._manifest["files"]
            with report.task("checking finished shards", len(entries), unit="files") as task:
                for name in list(entries):
                    for _, reason in damaged(self.folder, entries, names=[name]).items():
                        report.warn(f"{self.folder / name}: {reason}; it is captured again")
                        del entries[name]
                        self._manifest["complete"] = False
                    task.advance()
        else:
            others = [f.name for f in self.folder.iterdir() if f.name != INDEX and not f.name.startswith("shard_")]
            if others:
                fix = "choose another --output-path"
                raise UsageError(f"holds other files ({others[0]}), no store", where=str(self.folder), fix=fix)
            self._manifest = {"format": FORMAT, "meta": asdict(self.meta), "complete": False, "files": {}}
        if INDEX not in self._manifest["files"]:
            self._manifest["starts"] = list(self.plan.starts)
            index = {"counts": self.plan.counts_N3, "d2t": vocab.d2t, "t2d": vocab.t2d}
            self._record(INDEX, _write_tensors(self.folder / INDEX, index))

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    @property
    def complete(self) -> bool:
        """Whether everything was captured."""
        return bool(self._manifest["complete"])

    @property
    def pending(self) -> list[int]:
        """Shards that are still to be captured."""
        return [s for s in range(self.plan.shards) if shard_name(s) not in self._manifest["files"]]

    def write(self, shard: int, rows: Sequence[StateRow]) -> None:
        """Write the rows of a shard, in order. Raises Eagle3Error when the disk is full; earlier shards are kept."""
        numbers = self.plan.shard_rows(shard)
        tensors = {
            "token_ids": torch.cat([row.token_ids_S for row in rows]).int(),
            "loss_mask": torch.cat([row.loss_mask_S for row in rows]).to(torch.uint8),
            "aux": torch.cat([row.aux_UC.to("cpu", torch.bfloat16) for row in rows]),
            "last": torch.cat([row.last_RH.to("cpu", torch.bfloat16) for row in rows]),
            "top": torch.cat([row.top_R for row in rows]).to("cpu", torch.int32),
        }
        planned = self.plan.counts_N3[numbers.start : numbers.stop].sum(0).tolist()
        if [len(tensors["token_ids"]), len(tensors["aux"]), len(tensors["last"])] != planned:
            raise ValueError(f"shard {shard} does not have the planned rows {numbers}")
        for name in ("aux", "last"):
            if not bool(torch.isfinite(tensors[name]).all()):
                fix = "run the target in bfloat16 or float32 (--dtype)"
                raise ModelError(
                    f"not finite in rows {numbers.start} to {numbers.stop - 1}", where=f"{name} states", fix=fix
                )
        self._record(shard_name(shard), _write_tensors(self.folder / shard_name(shard), tensors))

    def finish(self) -> None:
        """Take the auxiliary channels' RMS and mark the store complete."""
        if self.pending:
            raise ValueError(f"shards {self.pending} were not captured")
        self._record(STATS, _write_tensors(self.folder / STATS, {"aux_rms": self._aux_rms()}), complete=True)

    def _aux_rms(self) -> Tensor:
        squares, seen = torch.zeros(self.meta.aux_width, dtype=torch.float64), 0
        for shard in range(self.plan.shards):
            if seen >= RMS_ROWS:
                break
            with safe_open(self.folder / shard_name(shard), "pt") as f:
                for part in f.get_slice("aux")[: RMS_ROWS - seen].split(4096):
                    squares += part.double().square().sum(0)
                    seen += len(part)
        return (squares / seen).sqrt().float() if seen else torch.ones(self.meta.aux_width)

    def _record(self, name: str, entry: dict[str, Any], *, complete: bool = False) -> None:
        files = {**self._manifest["files"], name: entry}
        self._manifest["files"] = {key: files[key] for key in sorted(files)}
        self._manifest["complete"] = complete
        write_json(self.folder / MANIFEST, self._manifest)


def discard_store(folder: Path) -> None:
    """Remove a store, finished or not; other files in the folder are left alone."""
    for pattern in (MANIFEST, INDEX, STATS, "shard_*.safetensors", ".*.tmp-*"):
        for path in folder.glob(pattern):
            path.unlink()


def _lock(folder: Path) -> int:
    """Keep a second capture out of the folder, for as long as this process lives or the handle is open."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(handle)
        raise Eagle3Error(
            "another capture is writing here", where=str(folder), fix="wait for it, or stop it"
        ) from error
    return handle


def _refuse_other(found: StoreMeta, wanted: StoreMeta, folder: Path) -> None:
    """Raise DataError where a store was captured from something else; a target may have moved to another place."""
    old, new = asdict(found), asdict(wanted)
    lines = []
    for key in new.keys() - {"target"}:
        if old[key] != new[key]:
            lines.append(f"- {HASHES[key]} differ" if key in HASHES else f"- {key}: {old[key]} there, {new[key]} now")
    if lines:
        raise DataError(
            "was captured differently:\n" + "\n".join(sorted(lines)),
            where=str(folder),
            fix="choose another --output-path, or pass --overwrite to capture again",
        )
