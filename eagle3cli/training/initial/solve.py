"""Linear maps in closed form: ridge regression, and the best map of a limited rank."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RIDGE = 0.5
"""Ridge strength: the weight of so many rows of mean size for each channel that is read."""
STRONGEST = 0.1
"""Never more than this share of the rows' own weight."""
SMALLEST = 1e-6
"""Eigenvalues of a covariance are kept above this share of the largest."""


class Equations:
    """Normal equations of a regression from ``[I]`` to ``[O]``, summed up over rows that need not be there at once."""

    def __init__(self) -> None:
        self.rows = 0
        self.gram_II: Tensor | None = None
        self.cross_IO: Tensor | None = None

    def add(self, x_RI: Tensor, y_RO: Tensor) -> None:
        """Take rows in."""
        gram_II = x_RI.T @ x_RI
        cross_IO = x_RI.T @ y_RO
        self.rows += len(x_RI)
        self.gram_II = gram_II if self.gram_II is None else self.gram_II + gram_II
        self.cross_IO = cross_IO if self.cross_IO is None else self.cross_IO + cross_IO

    def solve(self) -> Tensor:
        """``argmin_W |x W^T - y|^2 + ridge |W|^2``, ``[O, I]``, solved in fp64."""
        assert self.gram_II is not None
        assert self.cross_IO is not None
        gram_II = self.gram_II.double()
        share = min(RIDGE * len(gram_II) / self.rows, STRONGEST)
        gram_II.diagonal().add_(share * float(gram_II.diagonal().mean()))
        solved_IO: Tensor = torch.linalg.solve(gram_II, self.cross_IO.double())
        return solved_IO.T.to(self.cross_IO.dtype)


def ridge(x_RI: Tensor, y_RO: Tensor) -> Tensor:
    """``argmin_W |x W^T - y|^2 + ridge |W|^2``, ``[O, I]``."""
    equations = Equations()
    equations.add(x_RI, y_RO)
    return equations.solve()


@dataclass(frozen=True)
class Whitening:
    """Of the channels of some rows: the roots of their covariance, in fp64."""

    root_HH: Tensor
    inverse_root_HH: Tensor

    @classmethod
    def of(cls, x_RH: Tensor, *, shrink: float = 0.0) -> Whitening:
        """From rows ``[R, H]``. ``shrink`` adds that multiple of the mean variance to every direction's."""
        values, vectors = torch.linalg.eigh((x_RH.T @ x_RH / len(x_RH)).double())
        values = values.clamp(min=float(values[-1]) * SMALLEST) + shrink * values.mean()
        return cls((vectors * values.sqrt()) @ vectors.T, (vectors / values.sqrt()) @ vectors.T)

    def low_rank(self, map_OH: Tensor, rank: int) -> tuple[Tensor, Tensor]:
        """The map of this rank that errs least on such rows, as ``[rank, H]`` and ``[O, rank]`` in fp64."""
        left, sizes, right = torch.linalg.svd(map_OH.double() @ self.root_HH, full_matrices=False)
        spread = sizes[:rank].sqrt()
        return (spread[:, None] * right[:rank]) @ self.inverse_root_HH, left[:, :rank] * spread

    def white_directions(self, map_OH: Tensor, rank: int) -> Tensor:
        """The directions that the map of this rank reads, ``[rank, H]`` in fp64: on such rows each has unit variance,
        and none goes with another."""
        right = torch.linalg.svd(map_OH.double() @ self.root_HH, full_matrices=False)[2]
        directions: Tensor = right[:rank] @ self.inverse_root_HH
        return directions
