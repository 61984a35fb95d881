"""Encodings: exact where they say so, small where they say so, and unharmed by channels and tokens of huge size."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from eagle3cli.data.hidden_states.quantize import (
    BLOCK,
    LEVELS,
    QUANTIZATIONS,
    Quantization,
    calibrate,
    relative_error,
    usual_size,
)

LAYERS, HIDDEN = 3, 192
HUGE = (5, HIDDEN + 70)
"""Channels hundreds of times larger than the rest."""
BOUNDS: dict[str, float] = {"bf16": 0.003, "fp8": 0.04, "int8": 0.02, "int4": 0.16}


def states(rows: int, seed: int = 0) -> Tensor:
    """States as targets have them: channels of different sizes, two huge ones, a huge first token."""
    random = torch.Generator().manual_seed(seed)
    size_C = torch.exp(0.5 * torch.randn(LAYERS * HIDDEN, generator=torch.Generator().manual_seed(9)))
    size_C[list(HUGE)] *= 300
    found = torch.randn(rows, LAYERS * HIDDEN, generator=random) * size_C
    found[0] *= 10
    found[0, HUGE[0]] *= 10
    return found


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_planes_are_as_announced(name: Quantization) -> None:
    codec = calibrate(name, LAYERS, HIDDEN, states(100))
    planes = codec.encode(states(7))
    assert [(p.dtype, tuple(p.shape)) for p in planes] == [(p.dtype, (7, p.width)) for p in codec.planes]
    assert sum(p.element_size() * p.shape[1] for p in planes) == codec.bytes_per_state
    assert codec.decode(planes).shape == (7, LAYERS * HIDDEN)
    empty = codec.encode(states(7)[:0])
    assert codec.decode(empty).shape == (0, LAYERS * HIDDEN)


@pytest.mark.parametrize(("name", "bits"), [("bf16", 16), ("fp8", 8.09), ("int8", 8.125), ("int4", 4.125)])
def test_size(name: Quantization, bits: float) -> None:
    codec = calibrate(name, LAYERS, HIDDEN, states(100))
    assert codec.bytes_per_state * 8 / (LAYERS * HIDDEN) == pytest.approx(bits, abs=0.01)


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_error_is_small_in_every_channel_and_on_the_first_token(name: Quantization) -> None:
    codec = calibrate(name, LAYERS, HIDDEN, states(400, seed=1))
    wanted = states(400)
    found = codec.decode(codec.encode(wanted)).float()
    assert relative_error(wanted[1:], found[1:]) < BOUNDS[name]
    usual = torch.tensor([c for c in range(LAYERS * HIDDEN) if c not in HUGE])
    assert relative_error(wanted[1:][:, usual], found[1:][:, usual]) < BOUNDS[name]
    first = (found[0] - wanted[0]).norm() / wanted[0].norm()
    assert float(first) < BOUNDS[name]


def test_without_scales_and_rotation_int4_would_lose_the_small_channels() -> None:
    """What the two are there for: one scale a block of raw states."""
    wanted = states(400)[1:]
    blocks = wanted.unflatten(1, (-1, BLOCK))
    scale = blocks.abs().amax(-1, keepdim=True) / 7
    plain = ((blocks / scale).round() * scale).flatten(1)
    codec = calibrate("int4", LAYERS, HIDDEN, states(400, seed=1))
    ours = codec.decode(codec.encode(wanted))
    assert relative_error(wanted, ours) < 0.6 * relative_error(wanted, plain)


def test_bf16_is_exact() -> None:
    wanted = states(50).bfloat16()
    codec = calibrate("bf16", LAYERS, HIDDEN, wanted)
    assert torch.equal(codec.decode(codec.encode(wanted)), wanted)


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_zeros_stay_zeros_and_scale_of_the_states_does_not_matter(name: Quantization) -> None:
    wanted = states(60)[1:]
    wanted[3] = 0
    for factor in (1e-3, 1.0, 1e3):
        codec = calibrate(name, LAYERS, HIDDEN, wanted * factor)
        found = codec.decode(codec.encode(wanted * factor)).float()
        assert not found[3].any()
        assert relative_error(wanted * factor, found) < BOUNDS[name]


@pytest.mark.parametrize("name", QUANTIZATIONS)
@pytest.mark.parametrize("hidden", [8, 63, 64, 100])
def test_any_width(name: Quantization, hidden: int) -> None:
    wanted = torch.randn(300, 2 * hidden, generator=torch.Generator().manual_seed(0))
    codec = calibrate(name, 2, hidden, wanted)
    assert relative_error(wanted, codec.decode(codec.encode(wanted)).float()) < BOUNDS[name]


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_a_states_bytes_hardly_depend_on_the_batch(name: Quantization) -> None:
    """bf16 and fp8 work value by value. int8 and int4 rotate by a matrix product, whose last bits depend on the batch's
    size and the processor: a value halfway between two codes, or a block halfway between two scales, may go the other
    way.
    """
    codec = calibrate(name, LAYERS, HIDDEN, states(400))
    wanted = states(130, seed=2)
    together = codec.encode(wanted)
    for begin, end in pairwise((0, 64, 130)):
        for whole, part in zip(together, codec.encode(wanted[begin:end]), strict=True):
            differs = whole[begin:end].view(torch.uint8) != part.view(torch.uint8)
            assert float(differs.float().mean()) <= (0.01 if name in ("int8", "int4") else 0)


@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_decoded_states_hardly_depend_on_the_batch(name: Quantization) -> None:
    """To the bit for bf16 and fp8; int8 and int4 to the rounding of a product, added up in the kernel's own order."""
    codec = calibrate(name, LAYERS, HIDDEN, states(400))
    planes = codec.encode(states(130, seed=2))
    together = codec.decode(planes)
    size = float(together.abs().max())
    for begin, end in ((0, 1), (1, 3), (3, 64), (64, 130)):
        part = codec.decode(tuple(plane[begin:end] for plane in planes))
        error = float((part - together[begin:end]).abs().max())
        assert error <= (1e-6 * size if name in ("int8", "int4") else 0)


@pytest.mark.slow
@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=BLOCK, max_size=BLOCK), st.sampled_from(QUANTIZATIONS)
)
def test_no_states_give_anything_but_finite_ones(values: list[float], name: Quantization) -> None:
    codec = calibrate(name, 1, BLOCK, states(100)[:, :BLOCK])
    assert bool(torch.isfinite(codec.decode(codec.encode(torch.tensor([values])))).all())


def test_the_levels_are_the_best_for_a_normal_distribution() -> None:
    """Each level but the one held at 0 is the mean of the values nearest to it."""
    borders = [-math.inf, *((a + b) / 2 for a, b in pairwise(LEVELS)), math.inf]

    def below(x: float) -> float:
        return 0.5 * (1 + math.erf(x / math.sqrt(2)))

    def density(x: float) -> float:
        return math.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    for level, (low, high) in zip(LEVELS, pairwise(borders), strict=True):
        mean = (density(low) - density(high)) / (below(high) - below(low))
        assert level == 0 or level == pytest.approx(mean, abs=2e-4)


def test_usual_size_is_that_of_most_tokens() -> None:
    wanted = states(1000, seed=3)
    usual = usual_size(wanted)
    wanted[:20] *= 1e4
    torch.testing.assert_close(usual_size(wanted), usual, rtol=0.1, atol=0)
    assert bool((usual_size(torch.zeros(10, 4)) == 1).all())
