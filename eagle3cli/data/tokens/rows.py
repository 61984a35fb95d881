"""Token rows with their loss masks, kept in Arrow files that are memory-mapped and that `datasets` reads too."""

from __future__ import annotations

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from eagle3cli.data.images.reference import ImageRef
from eagle3cli.data.tokens.lengths import Counted
from eagle3cli.errors import DataError

Ids = npt.NDArray[np.int32]
Mask = npt.NDArray[np.uint8]

ARROW_FILE = "data-00000-of-00001.arrow"
ROLES = ("system", "user", "assistant", "tool")

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("input_ids", pa.list_(pa.int32())),
        ("loss_mask", pa.list_(pa.int8())),
        ("line", pa.int64()),
        ("turn_starts", pa.list_(pa.int32())),
        ("turn_roles", pa.list_(pa.int8())),
        ("truncated", pa.bool_()),
        ("source", pa.string()),
        ("images", pa.list_(pa.string())),
        ("image_sha256", pa.list_(pa.string())),
    ]
)
OPTIONAL = ("source", "images", "image_sha256")
"""Columns that caches of earlier versions lack."""


@dataclass(frozen=True)
class TokenRow:
    """One conversation as tokens; ``loss_mask`` is 1 on tokens that the target wrote, as long as ``token_ids``."""

    id: str
    token_ids: Ids
    loss_mask: Mask
    line: int = 0
    """Line of the input file, from 1; 0 where unknown."""
    turns: tuple[tuple[int, str], ...] = field(default=())
    """First token and role of each message, in order; empty where unknown."""
    truncated: bool = False
    """Cut at the maximum length."""
    source: str = ""
    """The data set that the row comes from; empty where unknown."""
    images: tuple[ImageRef, ...] = ()
    """The images whose tokens stand in ``token_ids``, in their order."""
    kept: Counted | None = field(default=None, compare=False)
    """What maximum lengths leave of it; known where it was tokenized just now."""

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def no_span(self) -> bool:
        """Nothing in the row is trained."""
        return not self.loss_mask.any()


def to_batch(rows: Iterable[TokenRow]) -> pa.RecordBatch:
    """Rows as one Arrow record batch in :data:`SCHEMA`."""
    rows = list(rows)
    columns = [
        pa.array([row.id for row in rows], pa.string()),
        _lists([np.asarray(row.token_ids, dtype=np.int32) for row in rows], pa.int32()),
        _lists([np.asarray(row.loss_mask, dtype=np.int8) for row in rows], pa.int8()),
        pa.array([row.line for row in rows], pa.int64()),
        _lists([np.array([start for start, _ in row.turns], dtype=np.int32) for row in rows], pa.int32()),
        _lists([np.array([ROLES.index(role) for _, role in row.turns], dtype=np.int8) for row in rows], pa.int8()),
        pa.array([row.truncated for row in rows], pa.bool_()),
        pa.array([row.source for row in rows], pa.string()),
        pa.array([[image.source for image in row.images] for row in rows], pa.list_(pa.string())),
        pa.array([[image.sha256 for image in row.images] for row in rows], pa.list_(pa.string())),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SCHEMA)


def images_hash(rows: Sequence[TokenRow] | TokenRows) -> str:
    """Identifies the images of all rows, in their order; empty where there are none."""
    if isinstance(rows, TokenRows) and rows.first_with_images is None:
        return ""
    shown = [[image.sha256 for image in row.images] for row in rows]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest() if any(shown) else ""


def _images(batch: pa.RecordBatch, at: int) -> tuple[ImageRef, ...]:
    if "images" not in batch.schema.names:
        return ()
    columns = (batch.column(name)[at].as_py() for name in ("images", "image_sha256"))
    return tuple(ImageRef(source, sha256) for source, sha256 in zip(*columns, strict=True))


def _lists(arrays: list[npt.NDArray[np.generic]], kind: pa.DataType) -> pa.ListArray:
    offsets = np.zeros(len(arrays) + 1, dtype=np.int32)
    np.cumsum([len(array) for array in arrays], out=offsets[1:])
    values = np.concatenate(arrays) if arrays else np.zeros(0, dtype=kind.to_pandas_dtype())
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(values, kind))


def write_rows(folder: Path, batches: Iterable[pa.RecordBatch], *, fingerprint: str) -> int:
    """Write batches to ``folder`` in the layout of ``datasets.load_from_disk``; returns the number of rows.

    ``fingerprint`` names the content: `datasets` keeps results of its own under it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    count = 0
    with pa.OSFile(str(folder / ARROW_FILE), "wb") as sink, pa.ipc.new_stream(sink, SCHEMA) as writer:
        for batch in batches:
            writer.write_batch(batch)
            count += batch.num_rows
    features: dict[str, Any] = {}
    for column in SCHEMA:
        if pa.types.is_list(column.type):
            value = {"dtype": str(column.type.value_type), "_type": "Value"}
            features[column.name] = {"feature": value, "_type": "List"}
        else:
            features[column.name] = {"dtype": str(column.type), "_type": "Value"}
    state: dict[str, Any] = {
        "_data_files": [{"filename": ARROW_FILE}],
        "_fingerprint": fingerprint,
        "_format_columns": None,
        "_format_kwargs": {},
        "_format_type": None,
        "_output_all_columns": False,
        "_split": None,
    }
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}, indent=1), encoding="utf-8")
    (folder / "state.json").write_text(json.dumps(state, indent=1), encoding="utf-8")
    return count


class TokenRows:
    """Rows of an Arrow folder, memory-mapped: opening costs nothing, a row is read when it is asked for."""

    def __init__(self, batches: list[pa.RecordBatch]) -> None:
        self._batches = [batch for batch in batches if batch.num_rows]
        self._ends: list[int] = list(np.cumsum([batch.num_rows for batch in self._batches], dtype=np.int64))
        self.lengths: list[int] = [
            int(length) for batch in self._batches for length in np.diff(batch.column("input_ids").offsets.to_numpy())
        ]

    @classmethod
    def open(cls, folder: Path) -> TokenRows:
        """The rows below ``folder``; raises DataError where they are absent or broken."""
        try:
            with pa.ipc.open_stream(pa.memory_map(str(folder / ARROW_FILE))) as reader:
                always = [name for name in SCHEMA.names if name not in OPTIONAL]
                names = reader.schema.names
                if names[: len(always)] != always or not {*names[len(always) :]} <= {*OPTIONAL}:
                    raise DataError(
                        "row-layout", f"columns {reader.schema.names}, not token rows", where=str(folder / ARROW_FILE)
                    )
                return cls(list(reader))
        except (OSError, pa.ArrowInvalid) as error:
            fix = "run `eagle3 cache` again with --overwrite"
            raise DataError(
                "damaged-file", f"not a readable cache of token rows: {error}", where=str(folder), fix=fix
            ) from error

    @classmethod
    def of(cls, rows: Iterable[TokenRow]) -> TokenRows:
        """Rows held in memory."""
        return cls([to_batch(rows)])

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> TokenRow:
        if not -len(self) <= index < len(self):
            raise IndexError(f"row {index} of {len(self)}")
        index %= len(self)
        which = bisect_right(self._ends, index)
        batch = self._batches[which]
        at = index - (self._ends[which - 1] if which else 0)

        def values(name: str) -> npt.NDArray[np.int32]:
            column = batch.column(name)
            start = column.offsets[at].as_py()
            end = column.offsets[at + 1].as_py()
            return np.asarray(column.values[start:end].to_numpy(zero_copy_only=True))

        roles = [ROLES[role] for role in values("turn_roles")]
        return TokenRow(
            id=batch.column("id")[at].as_py(),
            token_ids=values("input_ids"),
            loss_mask=values("loss_mask").view(np.uint8),
            line=batch.column("line")[at].as_py(),
            turns=tuple(zip((int(start) for start in values("turn_starts")), roles, strict=True)),
            truncated=batch.column("truncated")[at].as_py(),
            source=batch.column("source")[at].as_py() if "source" in batch.schema.names else "",
            images=_images(batch, at),
        )

    @property
    def first_with_images(self) -> int | None:
        """The first row that has images, counted from 0; None where all are of text alone."""
        before = 0
        for batch in self._batches:
            if "images" in batch.schema.names and len(batch.column("images").flatten()):
                counts = pc.list_value_length(batch.column("images")).to_numpy()
                return before + int(np.flatnonzero(counts)[0])
            before += batch.num_rows
        return None

    @property
    def sources(self) -> list[str]:
        """The data set that every row comes from; empty texts where unknown."""
        named = [batch.column("source") if "source" in batch.schema.names else None for batch in self._batches]
        return [
            name
            for batch, column in zip(self._batches, named, strict=True)
            for name in ([""] * batch.num_rows if column is None else column.to_pylist())
        ]

    def index_of(self, name: str) -> int | None:
        """The first row with this id, counted from 0; None where there is none."""
        for batch, end in zip(self._batches, self._ends, strict=True):
            at = int(pc.index(batch.column("id"), name).as_py())
            if at >= 0:
                return int(end) - int(batch.num_rows) + at
        return None

    def __iter__(self) -> Iterator[TokenRow]:
        return (self[index] for index in range(len(self)))

    @property
    def loss_lengths(self) -> list[int]:
        """Tokens of every row that carry loss."""
        lengths: list[int] = []
        for batch in self._batches:
            column = batch.column("loss_mask")
            before = np.concatenate(([0], np.cumsum(column.values.to_numpy(), dtype=np.int64)))
            lengths += np.diff(before[column.offsets.to_numpy()]).tolist()
        return lengths

    @property
    def loss_tokens(self) -> int:
        """Tokens that carry loss, over all rows."""
        return sum(int(batch.column("loss_mask").values.to_numpy().sum(dtype=np.int64)) for batch in self._batches)
