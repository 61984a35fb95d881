"""The target's hidden states on disk: shards of many rows, a manifest of what there is, random access by row.

A store is a folder::

    manifest.json            what was captured and how; once complete, every file with its size and checksum
    index.safetensors        size of every row, the draft vocabulary, what the encoding divides channels by
    shard_00000.safetensors  the rows' bytes one after the other, each with its checksum (``shard.py``)

Written by ``writer.py``. Knows nothing about models.
"""

from __future__ import annotations

import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from eagle3cli.data.hidden_states.quantize import Codec, Quantization
from eagle3cli.data.hidden_states.rows import TOKENS, PackedRow, RowCodec, RowCounts, StateRow
from eagle3cli.data.hidden_states.shard import Entry, ShardShape, StateShard, shard_header, shard_name
from eagle3cli.data.tokens.vocab import VocabMapping
from eagle3cli.errors import DataError, UsageError
from eagle3cli.runtime.files import read_json, well_formed

MANIFEST = "manifest.json"
INDEX = "index.safetensors"
FORMAT = 2
OPEN_SHARDS = 64
"""Shards that a reader keeps mapped."""


@dataclass(frozen=True)
class TargetIdentity:
    """What states come from, known before the target is loaded."""

    target: str
    revision: str | None
    target_hash: str
    aux_layers: tuple[int, ...]
    hidden_size: int
    vocab_size: int
    compute_dtype: str
    """Type that the target computes in."""


@dataclass(frozen=True)
class StoreMeta(TargetIdentity):
    """What a store was captured from; two captures may share a folder only if all of this is equal."""

    data_hash: str
    rows: int
    vocab_hash: str
    shard_mb: int
    encoding: Quantization
    source: str = "captured"
    """How the states came here; conversions name the encodings that they went through."""
    images_hash: str = ""
    """Identifies the images that the target was shown; empty where the rows are text alone."""

    @property
    def aux_width(self) -> int:
        """C."""
        return len(self.aux_layers) * self.hidden_size


def check_aux_layers(meta: StoreMeta, aux_layers: tuple[int, ...], where: Path, fix: str | None = None) -> None:
    """Raise UsageError where a draft reads other layers than a store holds."""
    if meta.aux_layers != aux_layers:
        what = f"the store holds aux layers {list(meta.aux_layers)}, the draft reads {list(aux_layers)}"
        raise UsageError("store-unfit", what, where=str(where), fix=fix)


def vocab_hash(vocab: VocabMapping) -> str:
    """Identifies a draft vocabulary."""
    return blake2b(vocab.d2t.numpy().tobytes() + vocab.t2d.numpy().tobytes(), digest_size=16).hexdigest()


def read_meta(manifest: Any, folder: Path) -> StoreMeta:
    """What a manifest says it was captured from. Raises DataError where it is none, or of another format."""
    try:
        if manifest["format"] != FORMAT:
            fix = "read it with the version of eagle3 that wrote it, or capture again"
            raise DataError(
                "store-format", f"store format {manifest['format']}, not {FORMAT}", where=str(folder), fix=fix
            )
        meta = {"images_hash": "", **manifest["meta"]}  # stores of earlier versions do not name it
        raw = {field.name: meta[field.name] for field in fields(StoreMeta)}
    except (KeyError, TypeError) as error:
        raise DataError(
            "no-store", f"not a manifest of hidden states ({error})", where=str(folder / MANIFEST)
        ) from error
    return StoreMeta(**{**raw, "aux_layers": tuple(raw["aux_layers"])})


@dataclass(frozen=True)
class Index:
    """What a reader needs to find and decode rows."""

    counts: RowCounts
    codec: RowCodec
    vocab: VocabMapping

    def to_bytes(self) -> bytes:
        """The index file."""
        tensors = {"counts": self.counts.counts_N3, "d2t": self.vocab.d2t, "t2d": self.vocab.t2d}
        return save({**tensors, "aux_scale": self.codec.aux.scale_C, "last_scale": self.codec.last.scale_C})


def read_index(blob: bytes, meta: StoreMeta) -> Index:
    """The index of a store with this meta; raises SafetensorError or KeyError where it is none."""
    tensors = load(blob)
    aux = Codec(meta.encoding, len(meta.aux_layers), meta.hidden_size, tensors["aux_scale"])
    last = Codec(meta.encoding, 1, meta.hidden_size, tensors["last_scale"])
    vocab = VocabMapping(d2t=tensors["d2t"], t2d=tensors["t2d"])
    return Index(RowCounts(tensors["counts"], meta.data_hash), RowCodec(aux, last), vocab)


def file_entry(blob: bytes) -> Entry:
    """What a manifest says of a file with this content."""
    return {"bytes": len(blob), "blake2b": blake2b(blob, digest_size=16).hexdigest()}


def shard_shapes(meta: StoreMeta, index: Index, starts: Sequence[int]) -> list[ShardShape]:
    """Header and sizes of every shard."""
    left_out = {"target", "revision"} if meta.images_hash else {"target", "revision", "images_hash"}
    identity = {name: value for name, value in asdict(meta).items() if name not in left_out}  # text's is as ever
    key = blake2b(repr(sorted(identity.items())).encode() + index.to_bytes(), digest_size=16).hexdigest()
    sizes = index.codec.sizes(index.counts.counts_N3).tolist()
    return [
        ShardShape(shard_header(key, shard, sizes[begin:end]), tuple(sizes[begin:end]))
        for shard, (begin, end) in enumerate(pairwise(starts))
    ]


class Store:
    """A finished store; ``store[i]`` reads one row from its memory-mapped shard. Threads may read at once.

    Raises DataError where the store is absent, unfinished or incomplete, and for a row whose checksum differs.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        self.meta = read_meta(self.manifest, folder)
        with well_formed(folder / MANIFEST, "a manifest of hidden states", "capture again with --overwrite"):
            self._open_shards()

    def _open_shards(self) -> None:
        """Find every row; what the manifest and the index say of each other is compared."""
        folder = self.folder
        self.starts: list[int] = self.manifest["starts"]
        if not self.manifest["complete"]:
            done = sum(path.name.startswith("shard_") for path in folder.iterdir())
            fix = "run the same command again; it goes on where it stopped"
            raise DataError(
                "store-unfinished", f"not finished: {done} of {len(self.starts) - 1} shards", where=str(folder), fix=fix
            )
        self.index = self._read_index()
        self.vocab = self.index.vocab
        self.codec = self.index.codec
        self.counts_N3 = self.index.counts.counts_N3
        self.lengths: list[int] = self.counts_N3[:, TOKENS].tolist()
        if self.starts[0] != 0 or self.starts[-1] != len(self) or self.starts != sorted(self.starts):
            raise ValueError(f"shards start at {self.starts[:5]}, rows are {len(self)}")
        self.shapes = shard_shapes(self.meta, self.index, self.starts)
        missing = [shard_name(i) for i, shape in enumerate(self.shapes) if not _has_size(self.path(i), shape.bytes)]
        if missing:
            fix = "run the command that wrote it again; it makes the missing shards anew"
            raise DataError(
                "damaged-store",
                f"{len(missing)} shards missing or cut off: {', '.join(missing[:5])}",
                where=str(folder),
                fix=fix,
            )
        self._shard_of = torch.bucketize(torch.arange(len(self)), torch.tensor(self.starts[1:]), right=True).tolist()
        self._open: OrderedDict[int, StateShard] = OrderedDict()
        self._lock = threading.Lock()

    def _read_index(self) -> Index:
        path = self.folder / INDEX
        entry = self.manifest["files"].get(INDEX)
        try:
            blob = path.read_bytes()
            if file_entry(blob) != entry:
                raise DataError(
                    "damaged-store",
                    "damaged: size or checksum differs",
                    where=str(path),
                    fix="capture again with --overwrite",
                )
            return read_index(blob, self.meta)
        except (OSError, SafetensorError, KeyError) as error:
            raise DataError("damaged-store", f"cannot be read: {error}", where=str(path)) from error

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> StateRow:
        return self.codec.decoded(self.packed(index))

    def packed(self, index: int) -> PackedRow:
        """A row whose states are still encoded."""
        shard, at = self.place(index)
        return self.codec.unpack(self.shard(shard).read(at), self.counts_N3[index].tolist())

    def size(self, index: int) -> int:
        """Bytes of a row."""
        shard, at = self.place(index)
        return self.shapes[shard].sizes[at]

    def place(self, index: int) -> tuple[int, int]:
        """StateShard of a row and its place in it; rows are in the order of their numbers on the disk."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        shard: int = self._shard_of[index]
        return shard, index - self.starts[shard]

    def path(self, shard: int) -> Path:
        """File of a shard."""
        return self.folder / shard_name(shard)

    def shard(self, shard: int) -> StateShard:
        """An open shard."""
        with self._lock:
            if shard not in self._open:
                self._open[shard] = StateShard(self.path(shard), self.shapes[shard])
                if len(self._open) > OPEN_SHARDS:
                    self._open.popitem(last=False)
            self._open.move_to_end(shard)
            return self._open[shard]

    def require_target(self, target_hash: str) -> None:
        """Raise UsageError unless the states are of the target with this fingerprint."""
        if self.meta.target_hash != target_hash:
            fix = f"give the target it came from ({self.meta.target}), or capture again"
            what = "was captured from another target: config or weights differ"
            raise UsageError("store-unfit", what, where=str(self.folder), fix=fix)

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(shape.bytes for shape in self.shapes) + sum(
            (self.folder / f).stat().st_size for f in (INDEX, MANIFEST)
        )


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
            differs = [
                label for name, label in SHARED.items() if getattr(other.meta, name) != getattr(first.meta, name)
            ]
            if differs:
                fix = "train on stores of one target and the same --aux-layers"
                what = f"differs from {first.folder} in {', '.join(differs)}"
                raise UsageError("store-unfit", what, where=str(other.folder), fix=fix)
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


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a store, finished or not; raises DataError where there is none."""
    if not (folder / MANIFEST).is_file():
        fix = "run `eagle3 hidden-states`, or give the folder that holds manifest.json"
        raise DataError("no-store", "no hidden-state store here", where=str(folder), fix=fix)
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict):
        raise DataError("no-store", "not a manifest of hidden states", where=str(folder / MANIFEST))
    return manifest


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
