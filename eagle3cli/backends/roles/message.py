"""What the states of a pass are on their way between two ranks: one stretch of bytes, of just what some loss reads.

As in a hidden-state store, that is the auxiliary states of a row's beginning and the last states at its teacher
positions, as they are or in one of the store's encodings, and the target's most likely tokens there.

Shapes: N tokens of the rows side by side, U of them with auxiliary states, R teacher positions, C = auxiliary layers x
hidden size, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load, save
from torch import Tensor

from eagle3cli.backends.batches.context import ContextShard
from eagle3cli.backends.roles.queue import Request
from eagle3cli.backends.target.target import LiveTarget, States
from eagle3cli.data.hidden_states.calibration import fit_codec
from eagle3cli.data.hidden_states.quantize import QUANTIZATIONS, Codec, Plane, Quantization
from eagle3cli.data.hidden_states.rows import StateRow, aux_count, teacher_positions
from eagle3cli.runtime.devices import to_device

ALIGNMENT = 16
EXACT = "exact"


class StateCodec(Protocol):
    """States to planes of values and back."""

    @property
    def planes(self) -> tuple[Plane, ...]:
        """Type and width of what a state becomes."""

    def encode(self, states_RC: Tensor) -> tuple[Tensor, ...]:
        """The planes of these states."""

    def decode(self, planes: tuple[Tensor, ...]) -> Tensor:
        """The states."""


@dataclass(frozen=True)
class Exact:
    """States as they are."""

    dtype: torch.dtype
    width: int

    @property
    def planes(self) -> tuple[Plane, ...]:
        """The one plane of the states themselves."""
        return (Plane(self.dtype, self.width),)

    def encode(self, states_RC: Tensor) -> tuple[Tensor, ...]:
        """The states themselves."""
        return (states_RC.to(self.dtype),)

    def decode(self, planes: tuple[Tensor, ...]) -> Tensor:
        """The states themselves."""
        return planes[0]


@dataclass(frozen=True)
class Held:
    """Which of a pass's states a rank gets that shares its rows with others, and where they stand among its tokens."""

    aux_M: Tensor
    aux_at_M: Tensor
    last_n: Tensor
    last_at_n: Tensor


def _found(at_U: Tensor, packed_n: Tensor, place_n: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
    """Of states at these positions those that stand at ``packed_n``, and their places."""
    index_N = torch.full((tokens,), -1)
    index_N[at_U] = torch.arange(len(at_U))
    index_n = index_N[packed_n]
    return index_n[index_n >= 0], place_n[index_n >= 0]


@dataclass(frozen=True)
class Where:
    """Which positions of some rows, side by side, a message speaks of."""

    cu_seqlens: tuple[int, ...]
    loss_mask_N: Tensor
    """bool, in the host's memory as all of these."""
    aux_at_U: Tensor
    teacher_R: Tensor
    held: Held | None = None
    """Where sequences are dealt to several ranks: of these states those that one of them gets."""

    @property
    def counts(self) -> tuple[int, int, int]:
        """How many auxiliary states, last states and most likely tokens a message has."""
        teachers = len(self.teacher_R)
        if self.held is None:
            return len(self.aux_at_U), teachers, teachers
        return len(self.held.aux_M), len(self.held.last_n), teachers

    def dealt(self, shard: ContextShard) -> Where:
        """The same for the rank that has this part of the rows."""
        aux_M, aux_at_M = _found(self.aux_at_U, shard.packed_n[shard.own_M], shard.own_M, self.cu_seqlens[-1])
        places_n = torch.arange(len(shard.packed_n))
        last_n, last_at_n = _found(self.teacher_R, shard.packed_n, places_n, self.cu_seqlens[-1])
        return replace(self, held=Held(aux_M, aux_at_M, last_n, last_at_n))

    @classmethod
    def of(cls, loss_masks: Sequence[Any]) -> Where:
        """Those of rows with these masks."""
        masks = [torch.from_numpy(np.asarray(mask).astype(bool)) for mask in loss_masks]
        cu_seqlens = tuple(accumulate(map(len, masks), initial=0))
        teachers = [teacher_positions(mask) for mask in masks]
        rows = list(zip(cu_seqlens, teachers, strict=False))
        aux_at_U = torch.cat([begin + torch.arange(aux_count(teacher_R)) for begin, teacher_R in rows])
        return cls(cu_seqlens, torch.cat(masks), aux_at_U, torch.cat([begin + teacher for begin, teacher in rows]))


@dataclass(frozen=True)
class LossStates:
    """What some loss reads of a pass."""

    aux_UC: Tensor
    last_RH: Tensor
    top_R: Tensor
    """int64: the target's most likely next token."""
    judged_2R: Tensor | None = None
    """What :meth:`Head.judge` says of the tokens that follow."""

    def dealt(self, held: Held) -> LossStates:
        """What one of several ranks gets that share the rows: its own states, and the tokens of all."""
        aux_M, last_n = (to_device(index, self.aux_UC.device) for index in (held.aux_M, held.last_n))
        return replace(self, aux_UC=self.aux_UC[aux_M], last_RH=self.last_RH[last_n])


def read_states(target: LiveTarget, request: Request, states: States) -> LossStates:
    """What a message holds of the states of all tokens; on the target's device."""
    where = Where.of(request.loss_masks)
    device = target.device
    aux_NC = torch.cat([aux for aux, _ in states])
    teacher_R = to_device(where.teacher_R, device)
    last_RH = torch.cat([last for _, last in states])[teacher_R]
    aux_UC = aux_NC[to_device(where.aux_at_U, device)]
    if not request.judge:
        return LossStates(aux_UC, last_RH, target.head.top_tokens(last_RH))
    token_ids_N = torch.from_numpy(np.concatenate(request.token_ids).astype(np.int64))
    following_R = to_device(token_ids_N.roll(-1)[where.teacher_R], device)
    top_R, judged_2R = target.head.judge(last_RH, following_R)
    return LossStates(aux_UC, last_RH, top_R, judged_2R.float())


@dataclass(frozen=True)
class Message:
    """The layout of what two ranks have agreed on."""

    aux: StateCodec
    last: StateCodec

    def pack(self, states: LossStates) -> Tensor:
        """The bytes of a message, on the states' device."""
        tensors = [states.top_R.int(), *self.aux.encode(states.aux_UC), *self.last.encode(states.last_RH)]
        if states.judged_2R is not None:
            tensors.append(states.judged_2R)
        parts = [tensor.contiguous().flatten().view(torch.uint8) for tensor in tensors]
        parts.append(parts[0].new_zeros(ALIGNMENT))  # no message is empty
        return torch.cat([torch.nn.functional.pad(part, (0, -len(part) % ALIGNMENT)) for part in parts])

    def empty(self, where: Where, device: torch.device, *, judged: bool) -> Tensor:
        """Room for a message."""
        size = sum(-(-_bytes(*part) // ALIGNMENT) * ALIGNMENT for part in self._parts(where, judged=judged))
        return torch.empty(size + ALIGNMENT, dtype=torch.uint8, device=device)

    def unpack(self, message: Tensor, where: Where, *, judged: bool) -> LossStates:
        """The inverse of :meth:`pack`, up to what the encoding loses."""
        tensors = []
        at = 0
        for dtype, shape in self._parts(where, judged=judged):
            size = _bytes(dtype, shape)
            tensors.append(message[at : at + size].view(dtype).view(shape))
            at += -(-size // ALIGNMENT) * ALIGNMENT
        aux_end = 1 + len(self.aux.planes)
        last_end = aux_end + len(self.last.planes)
        return LossStates(
            aux_UC=self.aux.decode(tuple(tensors[1:aux_end])),
            last_RH=self.last.decode(tuple(tensors[aux_end:last_end])),
            top_R=tensors[0].long(),
            judged_2R=tensors[last_end] if judged else None,
        )

    def _parts(self, where: Where, *, judged: bool) -> list[tuple[torch.dtype, tuple[int, ...]]]:
        """Type and shape of every tensor, in order."""
        aux, last, tokens = where.counts
        parts: list[tuple[torch.dtype, tuple[int, ...]]] = [(torch.int32, (tokens,))]
        parts += [(plane.dtype, (aux, plane.width)) for plane in self.aux.planes]
        parts += [(plane.dtype, (last, plane.width)) for plane in self.last.planes]
        return [*parts, (torch.float32, (2, tokens))] if judged else parts


def _bytes(dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    return dtype.itemsize * int(np.prod(shape, dtype=np.int64))


@dataclass(frozen=True)
class Shape:
    """What both sides know of the states before there are any."""

    layers: int
    hidden: int
    dtype: torch.dtype
    encoding: str
    """``exact``, or one of the store's."""

    @property
    def fitted(self) -> bool:
        """Whether the encoding has to be fitted to states first."""
        return self.encoding in ("int8", "int4")

    def message(self, device: torch.device, fitted: bytes = b"") -> Message:
        """The layout of the messages; ``fitted`` is what :func:`fit` gave, where the encoding has to be."""
        if self.encoding == EXACT:
            return Message(Exact(self.dtype, self.layers * self.hidden), Exact(self.dtype, self.hidden))
        name: Quantization = next(name for name in QUANTIZATIONS if name == self.encoding)
        scales = {"aux": torch.ones(self.layers * self.hidden), "last": torch.ones(self.hidden)}
        if fitted:
            scales = load(fitted)
        aux = Codec(name, self.layers, self.hidden, scales["aux"])
        return Message(aux.to(device), Codec(name, 1, self.hidden, scales["last"]).to(device))


def fit(shape: Shape, states: LossStates) -> bytes:
    """What an encoding has to know of states like these."""
    none = torch.zeros(0, dtype=torch.long)
    row = StateRow(none, none.bool(), states.aux_UC.cpu(), states.last_RH.cpu(), none)
    codec = fit_codec(next(name for name in QUANTIZATIONS if name == shape.encoding), [row])
    return save({"aux": codec.aux.scale_C, "last": codec.last.scale_C})
