"""Several sources in one result: how many rows of each, and in which order."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from typing import TypeVar

from eagle3cli.data.sources.dataset_specs import DatasetSpec

T = TypeVar("T")

SELF_ROWS = 1000
"""Rows that the target writes unless a size is given."""


def streamed_rows(specs: Sequence[DatasetSpec], size: int | None) -> list[int | None]:
    """How many different rows of each source are enough for ``size`` in all; None where it is read to its end.

    Local files are, so that the sample is drawn from all their rows.
    """
    if len(specs) == 1:
        return [(size or SELF_ROWS) if specs[0].endless else size if specs[0].hub else None]
    whole = sum(spec.weight or 0.0 for spec in specs)
    return [
        math.ceil(size * spec.weight / whole) if size and spec.weight and not spec.files else None for spec in specs
    ]


def quotas(counts: Sequence[int], weights: Sequence[float], size: int | None) -> list[int]:
    """Rows of each source so that their shares are as ``weights`` say: ``size`` in all, or as many as there are.

    A source with too few rows makes the whole smaller, not its own share.
    """
    shares = [weight / sum(weights) for weight in weights]
    most = min(count / share for count, share in zip(counts, shares, strict=True))
    total = math.floor(most + 1e-9) if size is None else min(size, math.floor(most + 1e-9))
    exact = [total * share for share in shares]
    rows = [min(math.floor(each + 1e-9), count) for each, count in zip(exact, counts, strict=True)]
    for i in sorted(range(len(rows)), key=lambda i: rows[i] - exact[i]):
        rows[i] += 1 if sum(rows) < total and rows[i] < counts[i] else 0
    return rows


def interleave(streams: Sequence[Iterator[T]], counts: Sequence[int], seed: int) -> Iterator[T]:
    """The items of all streams in a random order that keeps each stream's own; ``counts`` are their lengths."""
    rng = random.Random(seed)
    left = list(counts)
    while sum(left):
        draw = rng.randrange(sum(left))
        which = next(i for i in range(len(left)) if draw < sum(left[: i + 1]))
        left[which] -= 1
        yield next(streams[which])
