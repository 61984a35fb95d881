"""How one weight is made of what is stored."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from torch import Tensor

Parts = Mapping[str, Tensor]
"""Stored tensors by the part that each plays."""


@dataclass(frozen=True)
class Recipe:
    """A weight: the names of its stored parts, and the function that makes it of them, in float32."""

    parts: dict[str, str]
    decode: Callable[[Parts], Tensor]


def bases(names: Collection[str], ending: str) -> list[str]:
    """The names without ``ending`` of those that have it."""
    return sorted(name.removesuffix(ending) for name in names if name.endswith(ending))


def parts_of(base: str, keys: Collection[str], names: Collection[str]) -> dict[str, str]:
    """Those of the parts ``base.key`` that are stored, by their keys."""
    return {key: f"{base}.{key}" for key in keys if f"{base}.{key}" in names}
