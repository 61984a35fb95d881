"""Numbers of a few bits, as checkpoints pack them, and scales laid over the weights that they belong to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""The values of a 4-bit float: a sign, two bits of exponent, one of mantissa."""


def unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """Unsigned integers ``[..., count]`` of ``bits`` (1 to 8), as uint8, out of int32 words ``[..., n]``.

    The words are one stream of bits, the lowest first; an integer may go on in the next word (3 bits, 5, 6, 7). Raises
    ValueError for words of another size.
    """
    if words.dtype != torch.int32:
        raise ValueError(f"words of {words.dtype}, not torch.int32")
    if 32 % bits == 0:
        return unpack_apart(words, bits, count)
    begins = torch.arange(count) * bits
    wide = torch.nn.functional.pad(words.long() & 0xFFFFFFFF, (0, 1))
    both = wide[..., begins // 32] | wide[..., begins // 32 + 1] << 32
    unpacked: Tensor = ((both >> begins % 32) & (2**bits - 1)).to(torch.uint8)
    return unpacked


def unpack_apart(words: Tensor, bits: int, count: int) -> Tensor:
    """The same of words that hold whole integers alone, their highest bits unused where none fits any more."""
    shifts = torch.arange(32 // bits, dtype=torch.int32) * bits
    # int32 shifts keep the sign, which the mask takes off again
    values: Tensor = ((words[..., None] >> shifts) & (2**bits - 1)).to(torch.uint8)
    return values.flatten(-2)[..., :count]


def unpack_fp4(packed: Tensor) -> Tensor:
    """Values ``[..., 2n]`` in float32 of bytes ``[..., n]``, each two 4-bit floats, the lower half first."""
    table = torch.tensor(E2M1)
    halves = packed.contiguous().view(torch.uint8)
    return torch.stack((table[(halves & 15).int()], table[(halves >> 4).int()]), -1).flatten(-2)


def scale_values(scale: Tensor) -> Tensor:
    """Scales in float32; bytes are powers of two (E8M0, biased by 127)."""
    if scale.dtype == torch.uint8:
        exponent = scale.int() - 127
        return torch.ldexp(torch.ones_like(exponent, dtype=torch.float32), exponent)
    return scale.float()


def spread(scale: Tensor, shape: Sequence[int], block: Sequence[int] | None = None) -> Tensor:
    """A scale for every weight of ``shape`` ``[..., O, I]``, as a tensor that broadcasts to it.

    ``scale`` is one number, one a row ``[O]`` or an expert ``[E]``, or a grid ``[..., o, i]`` of which each covers a
    block of weights: of ``block`` rows and columns, the last ones cut off, else of equal parts. Raises ValueError for a
    grid that fits neither.
    """
    if scale.numel() == 1:
        return scale.reshape(())
    if scale.dim() == 1:
        of_experts = len(shape) == 3 and len(scale) == shape[0]
        scale = scale[:, None, None] if of_experts else scale[:, None]
    for dim in (-2, -1):
        size, parts = shape[dim], scale.shape[dim]
        if parts in (1, size):
            continue
        of_block = block[dim] if block else 0
        if of_block and -(-size // of_block) == parts:
            length = of_block
        elif size % parts == 0:
            length = size // parts
        else:
            raise ValueError(f"{list(scale.shape)} scales for weights of {list(shape)}")
        scale = scale.repeat_interleave(length, dim).narrow(dim, 0, size)
    return scale
