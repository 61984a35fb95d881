"""What of a row a hidden-state store keeps, and how that becomes bytes: one stretch a row, so that a row is one read.

A stretch holds token ids, the target's most likely tokens, the planes of the encoded auxiliary and last states and the
loss mask, wider types first (each is aligned to its own size), filled up to a multiple of 16 bytes.

Shapes: S tokens of a row, U of them with auxiliary states, R teacher positions, C = auxiliary layers x hidden size,
H hidden size, N rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import torch
from torch import Tensor

from eagle3cli.data.hidden_states.quantize import Codec, Quantization, calibrate
from eagle3cli.data.tokens.rows import TokenRow
from eagle3cli.errors import ModelError

ALIGNMENT = 16
TOKENS, AUX, LAST = range(3)
"""The columns of a table of counts: S, U and R of every row."""


def teacher_positions(loss_mask_S: Tensor) -> Tensor:
    """Positions t at which some loss reads the target's distribution, int64 ``[R]``.

    In ``serving`` alignment those with ``m[t]`` and ``m[t+1]``, in ``specforge`` alignment those with ``m[t-1]``; never
    the first of a row, which no draft row comes before.
    """
    mask = loss_mask_S.bool()
    read = torch.zeros_like(mask)
    read[1:] = mask[:-1]
    read[1:-1] |= mask[1:-1] & mask[2:]
    return read.nonzero()[:, 0]


def aux_count(teacher_R: Tensor) -> int:
    """How many rows, from the first, need auxiliary states: row p predicts from the teacher at p+1 or later, and
    attends to all rows before it."""
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
class PackedRow:
    """The same with encoded states: views of the row's stretch of bytes."""

    token_ids_S: Tensor
    """int32."""
    loss_mask_S: Tensor
    """uint8."""
    top_R: Tensor
    """int32."""
    aux: tuple[Tensor, ...]
    """Planes ``[U, width]``."""
    last: tuple[Tensor, ...]
    """Planes ``[R, width]``."""


@dataclass(frozen=True)
class RowCounts:
    """Size of every row of a data set, and what its tokens and masks are."""

    counts_N3: Tensor
    """int64: S, U and R of each row."""
    data_hash: str

    @property
    def tokens(self) -> int:
        """All tokens."""
        return int(self.counts_N3[:, TOKENS].sum())


def count_rows(rows: Iterable[TokenRow]) -> RowCounts:
    """Read every row's tokens and mask once."""
    counts = []
    digest = blake2b(digest_size=16)
    for row in rows:
        teacher = teacher_positions(torch.from_numpy(row.loss_mask.astype(bool)))
        counts.append((len(row), aux_count(teacher), len(teacher)))
        add_row(digest, row.token_ids.astype("<i4").tobytes(), row.loss_mask.astype("u1").tobytes())
    return RowCounts(torch.tensor(counts, dtype=torch.int64).reshape(-1, 3), digest.hexdigest())


def add_row(digest: blake2b, token_ids: bytes, loss_mask: bytes) -> None:
    """Add a row to the hash of a data set: little-endian int32 ids, and a byte of 0 or 1 for each."""
    digest.update(len(loss_mask).to_bytes(8, "little") + token_ids)
    digest.update(loss_mask)


@dataclass(frozen=True)
class _Field:
    name: str
    dtype: torch.dtype
    width: int
    counted: int
    """Which of S, U and R says how many there are."""


@dataclass(frozen=True)
class RowCodec:
    """Turns rows into stretches of bytes and back."""

    aux: Codec
    last: Codec

    @cached_property
    def _fields(self) -> tuple[_Field, ...]:
        fields = [_Field("token_ids", torch.int32, 1, TOKENS), _Field("top", torch.int32, 1, LAST)]
        fields += [_Field(f"aux{i}", plane.dtype, plane.width, AUX) for i, plane in enumerate(self.aux.planes)]
        fields += [_Field(f"last{i}", plane.dtype, plane.width, LAST) for i, plane in enumerate(self.last.planes)]
        fields.append(_Field("loss_mask", torch.uint8, 1, TOKENS))
        return tuple(sorted(fields, key=lambda field: -field.dtype.itemsize))

    @property
    def bytes_per_count(self) -> tuple[int, int, int]:
        """Bytes of a token, of an auxiliary row and of a teacher position."""
        sizes = [0, 0, 0]
        for field in self._fields:
            sizes[field.counted] += field.width * field.dtype.itemsize
        return (sizes[0], sizes[1], sizes[2])

    def sizes(self, counts_N3: Tensor) -> Tensor:
        """Bytes of every row, int64 ``[N]``."""
        raw_N = counts_N3 @ torch.tensor(self.bytes_per_count)
        return (raw_N + (ALIGNMENT - 1)) // ALIGNMENT * ALIGNMENT

    def pack(self, rows: Sequence[StateRow]) -> list[Tensor]:
        """The rows' bytes, uint8 on the CPU; states are encoded where they are, all rows together.

        Raises ModelError where a state is not finite.
        """
        aux, last = (torch.cat([getattr(row, name) for row in rows]) for name in ("aux_UC", "last_RH"))
        for name, states in (("auxiliary", aux), ("last", last)):
            if not bool(torch.isfinite(states).all()):
                fix = "run the target in bfloat16 or float32 (--dtype, --states-dtype)"
                raise ModelError("states-not-finite", f"the target's {name} states are not finite", fix=fix)
        planes = {f"aux{i}": plane.cpu() for i, plane in enumerate(self.aux.encode(aux))}
        planes |= {f"last{i}": plane.cpu() for i, plane in enumerate(self.last.encode(last))}
        blobs = []
        at = {AUX: 0, LAST: 0}
        for row in rows:
            ends = {AUX: at[AUX] + len(row.aux_UC), LAST: at[LAST] + len(row.last_RH)}
            values = {"token_ids": row.token_ids_S, "top": row.top_R, "loss_mask": row.loss_mask_S}
            for field in self._fields:
                if field.name in planes:
                    values[field.name] = planes[field.name][at[field.counted] : ends[field.counted]]
            blobs.append(self._joined(values))
            at = ends
        return blobs

    def _joined(self, values: dict[str, Tensor]) -> Tensor:
        parts = [values[field.name].cpu().to(field.dtype).contiguous().flatten() for field in self._fields]
        blob = torch.cat([part.view(torch.uint8) for part in parts])
        return torch.nn.functional.pad(blob, (0, -len(blob) % ALIGNMENT))

    def unpack(self, blob: Tensor, counts: Sequence[int]) -> PackedRow:
        """Views of a row's bytes; ``counts`` are its S, U and R."""
        values: dict[str, Tensor] = {}
        at = 0
        for field in self._fields:
            count = counts[field.counted]
            end = at + count * field.width * field.dtype.itemsize
            shape = (count,) if field.name in ("token_ids", "top", "loss_mask") else (count, field.width)
            values[field.name] = blob[at:end].view(field.dtype).view(shape)
            at = end
        return PackedRow(
            token_ids_S=values["token_ids"],
            loss_mask_S=values["loss_mask"],
            top_R=values["top"],
            aux=tuple(values[f"aux{i}"] for i in range(len(self.aux.planes))),
            last=tuple(values[f"last{i}"] for i in range(len(self.last.planes))),
        )

    def decoded(self, row: PackedRow) -> StateRow:
        """A row with its states as numbers: bfloat16 in the encoding bf16, else fp32."""
        return StateRow(
            token_ids_S=row.token_ids_S.long(),
            loss_mask_S=row.loss_mask_S.bool(),
            aux_UC=self.aux.decode(row.aux),
            last_RH=self.last.decode(row.last),
            top_R=row.top_R.long(),
        )

    def to(self, device: torch.device) -> RowCodec:
        """The same, for states on ``device``."""
        return RowCodec(self.aux.to(device), self.last.to(device))


def row_codec(encoding: Quantization, *, layers: int, hidden: int, aux_RC: Tensor, last_RH: Tensor) -> RowCodec:
    """The codec for rows whose states are like this sample's."""
    return RowCodec(calibrate(encoding, layers, hidden, aux_RC), calibrate(encoding, 1, hidden, last_RH))


def empty_codec(encoding: Quantization, *, layers: int, hidden: int) -> RowCodec:
    """A codec that was fitted to nothing: it tells sizes."""
    none = torch.zeros(0, layers * hidden)
    return row_codec(encoding, layers=layers, hidden=hidden, aux_RC=none, last_RH=none[:, :hidden])
