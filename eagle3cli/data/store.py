"""The target's hidden states on disk: shards of many rows, a manifest of what is complete, random access by row.

A store is a folder::

    manifest.json            what was captured, and every finished shard with its size and checksum
    index.safetensors        tokens, auxiliary rows and teacher positions of each row; the draft vocabulary
    shard_00000.safetensors  the rows' tensors one after the other
    stats.safetensors        RMS of every auxiliary channel; written last

Written by ``data/store_writer.py``. Knows nothing about models. Shapes: S tokens of a row, U of them with
auxiliary states, R teacher positions, C = auxiliary layers x hidden size, H hidden size.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from eagle3cli.data.vocab import VocabMapping
from eagle3cli.errors import DataError
from eagle3cli.runtime.files import read_json

MANIFEST, INDEX, STATS = "manifest.json", "index.safetensors", "stats.safetensors"
FORMAT = 1
OPEN_SHARDS = 64
"""Shards that a reader keeps mapped."""


def teacher_positions(loss_mask_S: Tensor) -> Tensor:
    """Positions t at which some loss reads the target's distribution: ``m[t+1]`` or ``m[t-1]``; int64 ``[R]``."""
    mask = loss_mask_S.bool()
    wanted = torch.zeros_like(mask)
    wanted[:-1] |= mask[1:]
    wanted[1:] |= mask[:-1]
    return wanted.nonzero()[:, 0]


def aux_count(teacher_R: Tensor) -> int:
    """How many rows, from the first, need auxiliary states: row p predicts from the teacher at p+1 or later."""
    return int(teacher_R[-1]) if len(teacher_R) else 0


@dataclass(frozen=True)
class StateRow:
    """One row: its tokens and what the target says about them."""

    token_ids_S: Tensor
    """int64."""
    loss_mask_S: Tensor
    """bool."""
    aux_UC: Tensor
    """Auxiliary states of the first U tokens, side by side; nothing reads later ones."""
    last_RH: Tensor
    """What the target's head reads, at :func:`teacher_positions` only."""
    top_R: Tensor
    """int64: the target's most likely next token there."""


@dataclass(frozen=True)
class StoreMeta:
    """What a store was captured from; two captures may share a folder only if all of this is equal."""

    target: str
    target_hash: str
    aux_layers: tuple[int, ...]
    hidden_size: int
    vocab_size: int
    compute_dtype: str
    data_hash: str
    rows: int
    vocab_hash: str
    shard_mb: int
    encoding: str = "bf16"

    @property
    def aux_width(self) -> int:
        """C."""
        return len(self.aux_layers) * self.hidden_size


def vocab_hash(vocab: VocabMapping) -> str:
    """Identifies a draft vocabulary."""
    return blake2b(vocab.d2t.numpy().tobytes() + vocab.t2d.numpy().tobytes(), digest_size=16).hexdigest()


def shard_name(shard: int) -> str:
    """File name of a shard."""
    return f"shard_{shard:05d}.safetensors"


def _checksum(path: Path) -> str:
    digest = blake2b(digest_size=16)
    with path.open("rb") as f:
        while block := f.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def read_meta(manifest: Any, folder: Path) -> StoreMeta:
    """What a manifest says it was captured from. Raises DataError where it is none, or of another format."""
    try:
        if manifest["format"] != FORMAT:
            fix = "read it with the version of eagle3 that wrote it, or capture again"
            raise DataError(f"store format {manifest['format']}, not {FORMAT}", where=str(folder), fix=fix)
        raw = {field.name: manifest["meta"][field.name] for field in fields(StoreMeta)}
    except (KeyError, TypeError) as error:
        raise DataError(f"not a manifest of hidden states ({error})", where=str(folder / MANIFEST)) from error
    return StoreMeta(**{**raw, "aux_layers": tuple(raw["aux_layers"])})


def damaged(folder: Path, entries: dict[str, dict[str, Any]], *, names: Sequence[str] | None = None) -> dict[str, str]:
    """Files of a store that differ from the manifest's size or checksum, with the reason."""
    found = {}
    for name in names or entries:
        path, entry = folder / name, entries[name]
        if not path.is_file():
            found[name] = "missing"
        elif path.stat().st_size != entry["bytes"]:
            found[name] = f"{path.stat().st_size} bytes, not {entry['bytes']}"
        elif _checksum(path) != entry["blake2b"]:
            found[name] = "checksum differs: the file was damaged after it was written"
    return found


class Store:
    """A finished store; ``store[i]`` reads one row from its memory-mapped shard.

    Raises DataError where the store is absent, unfinished or incomplete.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / MANIFEST).is_file():
            fix = "run `eagle3 hidden-states`, or give the folder that holds manifest.json"
            raise DataError("no hidden-state store here", where=str(folder), fix=fix)
        manifest = read_json(folder / MANIFEST)
        self.meta = read_meta(manifest, folder)
        self.files: dict[str, dict[str, Any]] = manifest["files"]
        self.starts: list[int] = manifest["starts"]
        if not manifest["complete"]:
            done = sum(name.startswith("shard_") for name in self.files)
            fix = "run the same `eagle3 hidden-states` again; it goes on where it stopped"
            raise DataError(f"not finished: {done} of {len(self.starts) - 1} shards", where=str(folder), fix=fix)
        wrong = damaged(folder, self.files, names=[INDEX, STATS])
        for name, entry in self.files.items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != entry["bytes"]:
                wrong.setdefault(name, "missing or cut off")
        if wrong:
            fix = "run the same `eagle3 hidden-states` again; it captures what is damaged"
            listed = ", ".join(f"{name} ({reason})" for name, reason in sorted(wrong.items())[:5])
            raise DataError(f"{len(wrong)} damaged files: {listed}", where=str(folder), fix=fix)
        index = load_file(folder / INDEX)
        self.vocab = VocabMapping(d2t=index["d2t"], t2d=index["t2d"])
        self.aux_rms_C = load_file(folder / STATS)["aux_rms"]
        counts_N3 = index["counts"]
        self.lengths: list[int] = counts_N3[:, 0].tolist()
        ends = torch.cat((torch.zeros(1, 3, dtype=torch.int64), counts_N3.cumsum(0)))
        first = torch.repeat_interleave(
            torch.tensor(self.starts[:-1]), torch.tensor([b - a for a, b in pairwise(self.starts)])
        )
        self._shard_of = torch.bucketize(torch.arange(len(counts_N3)), torch.tensor(self.starts[1:]), right=True)
        self._from_N3, self._to_N3 = ends[:-1] - ends[first], ends[1:] - ends[first]
        self._open: OrderedDict[int, Any] = OrderedDict()

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> StateRow:
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        shard = int(self._shard_of[index])
        (s0, u0, r0), (s1, u1, r1) = self._from_N3[index].tolist(), self._to_N3[index].tolist()
        file = self._shard(shard)
        try:
            return StateRow(
                token_ids_S=file.get_slice("token_ids")[s0:s1].long(),
                loss_mask_S=file.get_slice("loss_mask")[s0:s1].bool(),
                aux_UC=file.get_slice("aux")[u0:u1],
                last_RH=file.get_slice("last")[r0:r1],
                top_R=file.get_slice("top")[r0:r1].long(),
            )
        except SafetensorError as error:
            raise DataError(
                f"row {index} cannot be read: {error}", where=str(self.folder / shard_name(shard))
            ) from error

    def _shard(self, shard: int) -> Any:
        if shard not in self._open:
            path = self.folder / shard_name(shard)
            try:
                self._open[shard] = safe_open(path, "pt")
            except (SafetensorError, OSError) as error:
                raise DataError(f"cannot be read: {error}", where=str(path)) from error
            if len(self._open) > OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(shard)
        return self._open[shard]
