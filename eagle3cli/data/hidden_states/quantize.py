"""How hidden states become bytes and back: bit for bit, or two to four times smaller at a stated loss.

    bf16   2 bytes a value; exact for states that were computed in bfloat16
    fp8    e4m3 with one scale per token and layer
    int8   one scale per block of 64 channels
    int4   the same with 16 levels, spaced as a normal distribution wants them

Hidden states have channels hundreds of times larger than the rest, and tokens (the first of a row) on which a few
channels are thousands of times larger; a shared scale would leave nothing of the small ones. int8 and int4 therefore
divide every channel by the root of its usual size, which a sample of the states tells once for a whole store, and
rotate blocks of 64 channels by a Hadamard matrix, after which a block's values are alike and nearly normal. The root,
because noise then comes back in proportion to it, and of all powers it leaves the least noise in total.

Plain torch on any device. bf16 and fp8 work value by value; int8 and int4 rotate by a matrix product, whose last bits
may depend on the batch's size and the processor. Shapes: R states, C = layers x hidden channels, B blocks of a state.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional as F

Quantization = Literal["bf16", "fp8", "int8", "int4"]
QUANTIZATIONS: tuple[Quantization, ...] = get_args(Quantization)

BLOCK = 64
STEPS_PER_OCTAVE = 6
ZERO_STEP = 128
"""A block's scale is ``2 ** ((code - ZERO_STEP) / STEPS_PER_OCTAVE)``, its code one byte."""
LEVELS = (
    *(-2.6809, -2.0065, -1.5461, -1.1749, -0.8511, -0.5548, -0.2739, 0.0),
    *(0.2430, 0.4909, 0.7493, 1.0256, 1.3309, 1.6844, 2.1270, 2.7808),
)
"""16 levels with the least squared error on a standard normal distribution, one of them held at 0 (Lloyd's
algorithm): where one value of a block is huge, the small ones must be able to vanish."""
SCALES_TRIED = 5
"""int4 takes the scale with the least error among that of the block's largest value and the next smaller ones."""
CELLS = 1024
CELLS_END = 3.2
MOST_ROOT = 4.0
"""A channel's usual size after the division is at most this many times that of its layer's middle channel, so that a
channel of hundreds of times the usual size takes no precision from the others of its block."""
FP8_MAX = 448.0
ELEMENTS_AT_ONCE = {"cpu": 250_000, "cuda": 16_000_000}
"""Values encoded together: what stays in a core's cache, and what fills a GPU."""
USUAL_FLOOR = 1e-3
NORMAL_MEDIAN = 0.6745
"""Median of the absolute value of a standard normal variable."""


@dataclass(frozen=True)
class Plane:
    """One of the arrays that encoded states consist of: ``width`` values a state."""

    dtype: torch.dtype
    width: int


@dataclass(frozen=True)
class Codec:
    """One encoding for states of one shape."""

    name: Quantization
    layers: int
    hidden: int
    scale_C: Tensor
    """fp32: what int8 and int4 divide the channels by; 1 in the others."""

    @property
    def planes(self) -> tuple[Plane, ...]:
        """What :meth:`encode` makes of a state."""
        channels = self.layers * self.hidden
        blocks = self.blocks
        if self.name == "bf16":
            return (Plane(torch.bfloat16, channels),)
        if self.name == "fp8":
            return (Plane(torch.bfloat16, self.layers), Plane(torch.float8_e4m3fn, channels))
        if self.name == "int8":
            return (Plane(torch.uint8, blocks), Plane(torch.int8, blocks * BLOCK))
        return (Plane(torch.uint8, blocks), Plane(torch.uint8, blocks * BLOCK // 2))

    @property
    def blocks(self) -> int:
        """B."""
        return self.layers * -(-self.hidden // BLOCK)

    @property
    def bytes_per_state(self) -> int:
        """Size of an encoded state."""
        return sum(plane.width * plane.dtype.itemsize for plane in self.planes)

    def encode(self, states_RC: Tensor) -> tuple[Tensor, ...]:
        """The planes of these states, each ``[R, width]``, on the states' device."""
        elements = ELEMENTS_AT_ONCE["cuda" if states_RC.is_cuda else "cpu"]
        at_once = max(1, elements // (self.layers * self.hidden))
        encode, _ = _CODING[self.name]
        parts = [encode(self, part.float()) for part in states_RC.split(at_once)]
        if not parts:
            return tuple(torch.zeros(0, p.width, dtype=p.dtype, device=states_RC.device) for p in self.planes)
        return tuple(torch.cat(plane) for plane in zip(*parts, strict=True))

    def decode(self, planes: tuple[Tensor, ...]) -> Tensor:
        """The states ``[R, C]``, bfloat16 for bf16, else fp32, where the codec is."""
        _, decode = _CODING[self.name]
        return decode(self, *(plane.to(self.scale_C.device) for plane in planes))

    def to(self, device: torch.device) -> Codec:
        """The same, for states on ``device``, with all tables there that decoding reads: whatever stream decodes."""
        scale_C = self.scale_C.to(device)
        if self.name in ("int8", "int4"):
            _hadamard(scale_C.device)
            _pairs(scale_C.device)
        return replace(self, scale_C=scale_C)


def calibrate(name: Quantization, layers: int, hidden: int, sample_RC: Tensor) -> Codec:
    """The codec for states like these."""
    scale_C = torch.ones(layers * hidden)
    if name in ("int8", "int4") and len(sample_RC):
        size_LH = usual_size(sample_RC).view(layers, hidden)
        middle_L1 = size_LH.median(1, keepdim=True).values
        scale_C = torch.maximum(size_LH.sqrt(), size_LH / (MOST_ROOT * middle_L1.sqrt())).flatten().cpu()
    return Codec(name, layers, hidden, scale_C)


def usual_size(sample_RC: Tensor) -> Tensor:
    """How large each channel usually is, ``[C]``: by the median, which the few huge tokens do not move."""
    size_C = torch.cat([part.float().abs().median(0).values for part in sample_RC.split(256, dim=1)]) / NORMAL_MEDIAN
    floor = USUAL_FLOOR * float(size_C.mean())
    return size_C.clamp(min=floor) if floor > 0 else torch.ones_like(size_C)


def relative_error(states_RC: Tensor, decoded_RC: Tensor) -> float:
    """Root mean square of the error relative to that of the states, every channel counting the same."""
    error = decoded_RC.float() - states_RC.float()
    power_C = states_RC.float().square().mean(0)
    used = power_C > 0
    return float((error.square().mean(0)[used] / power_C[used]).mean().sqrt()) if bool(used.any()) else 0.0


def _encode_bf16(codec: Codec, states_RC: Tensor) -> tuple[Tensor, ...]:
    return (states_RC.bfloat16(),)


def _decode_bf16(codec: Codec, states_RC: Tensor) -> Tensor:
    return states_RC


def _encode_fp8(codec: Codec, states_RC: Tensor) -> tuple[Tensor, ...]:
    states_RLH = states_RC.reshape(len(states_RC), codec.layers, codec.hidden)
    scale_RL = (states_RLH.abs().amax(-1) / FP8_MAX).clamp(min=torch.finfo(torch.bfloat16).tiny).bfloat16()
    codes_RLH = (states_RLH / scale_RL.float().unsqueeze(-1)).clamp(-FP8_MAX, FP8_MAX).to(torch.float8_e4m3fn)
    return scale_RL, codes_RLH.flatten(1)


def _decode_fp8(codec: Codec, scale_RL: Tensor, codes_RC: Tensor) -> Tensor:
    codes_RLH = codes_RC.float().view(len(codes_RC), codec.layers, codec.hidden)
    return (codes_RLH * scale_RL.float().unsqueeze(-1)).flatten(1)


def _encode_int8(codec: Codec, states_RC: Tensor) -> tuple[Tensor, ...]:
    blocks_RBK = _rotated(codec, states_RC)
    step_RB1 = _largest_step(blocks_RBK, 127.0)
    codes_RBK = (blocks_RBK / _scale(step_RB1)).round().clamp(-127, 127)
    return step_RB1.squeeze(-1).to(torch.uint8), codes_RBK.to(torch.int8).flatten(1)


def _decode_int8(codec: Codec, step_RB: Tensor, codes_RX: Tensor) -> Tensor:
    codes_RBK = codes_RX.float().view(len(codes_RX), codec.blocks, BLOCK)
    return _restored(codec, codes_RBK * _scale(step_RB.float()).unsqueeze(-1))


def _encode_int4(codec: Codec, states_RC: Tensor) -> tuple[Tensor, ...]:
    blocks_RBK = _rotated(codec, states_RC)
    largest_RB1 = _largest_step(blocks_RBK, LEVELS[-1])
    best_RB1 = largest_RB1
    least_RB1 = torch.full_like(largest_RB1, torch.inf)
    for smaller in range(SCALES_TRIED):
        step_RB1 = (largest_RB1 - smaller).clamp(min=0)
        scaled_RBK = blocks_RBK / _scale(step_RB1)
        near_RBK = _levels(states_RC.device).index_select(0, _nearest(scaled_RBK).flatten()).view_as(scaled_RBK)
        error_RB1 = near_RBK.sub_(scaled_RBK).square_().sum(-1, keepdim=True) * _scale(step_RB1).square()
        best_RB1 = torch.where(error_RB1 < least_RB1, step_RB1, best_RB1)
        least_RB1 = torch.minimum(error_RB1, least_RB1)
    codes_RX = _nearest(blocks_RBK / _scale(best_RB1)).to(torch.uint8).flatten(1)
    return best_RB1.squeeze(-1).to(torch.uint8), codes_RX[:, 0::2] | (codes_RX[:, 1::2] << 4)


def _nearest(scaled_RBK: Tensor) -> Tensor:
    """Index of the level nearest to each value, int32; by a table, several times faster than a search."""
    cell_RBK = ((scaled_RBK + CELLS_END) * (CELLS / (2 * CELLS_END))).clamp_(0, CELLS - 1).to(torch.int32)
    return _cells(scaled_RBK.device).index_select(0, cell_RBK.flatten()).view_as(cell_RBK)


def _decode_int4(codec: Codec, step_RB: Tensor, codes_RX: Tensor) -> Tensor:
    values_RBK = F.embedding(codes_RX.int(), _pairs(codes_RX.device)).view(len(codes_RX), codec.blocks, BLOCK)
    return _restored(codec, values_RBK * _scale(step_RB.float()).unsqueeze(-1))


def _rotated(codec: Codec, states_RC: Tensor) -> Tensor:
    """The states as rotated blocks ``[R, B, 64]``; each layer is filled up with zeros to whole blocks."""
    states_RLH = (states_RC / codec.scale_C).view(len(states_RC), codec.layers, codec.hidden)
    padded_RLX = F.pad(states_RLH, (0, -codec.hidden % BLOCK))
    return padded_RLX.reshape(len(states_RC), codec.blocks, BLOCK) @ _hadamard(states_RC.device)


def _restored(codec: Codec, blocks_RBK: Tensor) -> Tensor:
    """The inverse of :func:`_rotated`."""
    padded_RX = (blocks_RBK @ _hadamard(blocks_RBK.device)).flatten(1)
    padded_RLX = padded_RX.view(len(blocks_RBK), codec.layers, padded_RX.shape[1] // codec.layers)
    return padded_RLX[..., : codec.hidden].flatten(1) * codec.scale_C


def _largest_step(blocks_RBK: Tensor, top: float) -> Tensor:
    """The code ``[R, B, 1]`` of the smallest scale that brings a block's largest value within ``top``."""
    peak_RB1 = blocks_RBK.abs().amax(-1, keepdim=True)
    return ((peak_RB1 / top).log2() * STEPS_PER_OCTAVE).ceil().clamp(-ZERO_STEP, 255 - ZERO_STEP) + ZERO_STEP


def _scale(step: Tensor) -> Tensor:
    return ((step - ZERO_STEP) / STEPS_PER_OCTAVE).exp2()


@lru_cache(maxsize=8)
def _hadamard(device: torch.device) -> Tensor:
    """The symmetric orthogonal matrix of +-1/8."""
    matrix = torch.ones(1, 1)
    while len(matrix) < BLOCK:
        matrix = torch.cat((torch.cat((matrix, matrix), 1), torch.cat((matrix, -matrix), 1)))
    return matrix.div(BLOCK**0.5).to(device)


@lru_cache(maxsize=8)
def _levels(device: torch.device) -> Tensor:
    return torch.tensor(LEVELS, device=device)


@lru_cache(maxsize=8)
def _cells(device: torch.device) -> Tensor:
    """The level nearest to the middle of each of CELLS equal parts of -CELLS_END..CELLS_END."""
    levels = torch.tensor(LEVELS)
    middle = (torch.arange(CELLS) + 0.5) * (2 * CELLS_END / CELLS) - CELLS_END
    return torch.bucketize(middle, (levels[1:] + levels[:-1]) / 2, out_int32=True).to(device)


@lru_cache(maxsize=8)
def _pairs(device: torch.device) -> Tensor:
    """The two values of every byte of int4, ``[256, 2]``."""
    byte = torch.arange(256, device=device)
    levels = _levels(device)
    return torch.stack((levels[byte & 15], levels[byte >> 4]), 1)


_CODING: dict[Quantization, tuple[Callable[[Codec, Tensor], tuple[Tensor, ...]], Callable[..., Tensor]]] = {
    "bf16": (_encode_bf16, _decode_bf16),
    "fp8": (_encode_fp8, _decode_fp8),
    "int8": (_encode_int8, _decode_int8),
    "int4": (_encode_int4, _decode_int4),
}
"""How each encodes and decodes."""
