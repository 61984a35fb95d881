"""Which rows carry loss at which depth, and which rows are computed at all.

Row p at depth i has read tokens up to ``x_{p+1+i}`` and predicts ``x_{p+2+i}``; its teacher is the target's
distribution at position ``p+1+i``. A row is *kept* at a depth where its loss counts, and *alive* at a depth when it is
kept there or deeper: rows that are not alive are never computed (depth-0 keys and values apart).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Alignment = Literal["serving", "specforge"]


@dataclass(frozen=True)
class DepthRows:
    """The rows of one depth; ``R`` counts the alive ones."""

    rows_R: Tensor
    """Packed position p of every alive row, ascending."""
    within_R: Tensor
    """Index of every alive row in the previous depth's ``rows_R`` (at depth 0: the packed position itself)."""
    kept_r: Tensor
    """Indices into ``rows_R`` of the rows that carry loss."""
    teacher_r: Tensor
    """Packed position of each kept row's teacher."""
    counted: int
    """Rows whose accuracy counts: the kept ones and those that the draft vocabulary cannot express."""


@dataclass(frozen=True)
class RowPlan:
    """Rows of every depth for one packed batch."""

    depths: tuple[DepthRows, ...]
    bounds: tuple[int, ...]
    last_row: int
    """Rows after this packed position are read by nobody."""

    @property
    def kept(self) -> int:
        """Rows that carry loss at depth 0: what a step's loss is divided by."""
        return len(self.depths[0].kept_r)

    @property
    def empty(self) -> bool:
        """No row carries loss at any depth."""
        return self.last_row < 0


def masked_rows(loss_mask_N: Tensor, bounds: tuple[int, ...], depths: int, alignment: Alignment) -> Tensor:
    """Whether row p counts at depth i by the loss mask alone, ``[depths, N]`` bool.

    serving: ``m_{p+1} .. m_{p+2+i}`` are all 1, the states in which a server asks the draft while it decodes a reply.
    specforge: ``m_{p+i}`` is 1 and the teacher's position is inside the sequence.
    """
    size = len(loss_mask_N)
    position = torch.arange(size, device=loss_mask_N.device)
    ends = torch.repeat_interleave(
        torch.tensor(bounds[1:], device=loss_mask_N.device),
        torch.tensor(bounds[1:], device=loss_mask_N.device) - torch.tensor(bounds[:-1], device=loss_mask_N.device),
    )

    def ahead(offset: int, limit: int) -> Tensor:
        """``m_{p+offset}``, False where ``p+limit`` is past the row's sequence."""
        inside = position + limit < ends
        return loss_mask_N[(position + offset).clamp(max=size - 1)] & inside

    if alignment == "specforge":
        return torch.stack([ahead(i, i + 1) for i in range(depths)])
    run = ahead(1, 1)
    found = []
    for i in range(depths):
        run = run & ahead(2 + i, 2 + i)
        found.append(run)
    return torch.stack(found)


def draw_anchors(
    rows: Sequence[int], bounds: tuple[int, ...], fraction: float, *, seed: int, step: int
) -> Tensor | None:
    """A random share of a packed batch's positions, ``[N]`` bool on the CPU; None where the share is all.

    Drawn sequence by sequence from seed, step and row number, so it does not depend on how a batch is cut.
    """
    if fraction == 1.0:
        return None
    found = []
    for row, begin, end in zip(rows, bounds[:-1], bounds[1:], strict=True):
        generator = torch.Generator().manual_seed(((seed * 1_000_003 + step) * 1_000_003 + row) % 2**63)
        found.append(torch.rand(end - begin, generator=generator) < fraction)
    return torch.cat(found)


def plan_rows(
    loss_mask_N: Tensor,
    bounds: tuple[int, ...],
    expressible_N: Tensor,
    depths: int,
    alignment: Alignment,
    anchors_N: Tensor | None = None,
) -> RowPlan:
    """Decide the rows of every depth.

    ``expressible_N`` says whether the answer of a teacher position is in the draft vocabulary; a row whose answer is
    not carries no loss, but stays alive for deeper depths. ``anchors_N`` (bool) names the only rows that may carry
    loss; None is all.
    """
    masked_TN = masked_rows(loss_mask_N, bounds, depths, alignment)
    if anchors_N is not None:
        masked_TN &= anchors_N.to(masked_TN.device)
    size = len(loss_mask_N)
    position = torch.arange(size, device=loss_mask_N.device)
    answer_TN = torch.stack([(position + 1 + i).clamp(max=size - 1) for i in range(depths)])
    kept_TN = masked_TN & expressible_N[answer_TN]
    alive_TN = kept_TN.flip(0).cumsum(0).flip(0) > 0
    found = []
    before = position
    for i in range(depths):
        within_R = alive_TN[i, before].nonzero()[:, 0]
        rows_R = before[within_R]
        kept_r = kept_TN[i, rows_R].nonzero()[:, 0]
        found.append(DepthRows(rows_R, within_R, kept_r, rows_R[kept_r] + 1 + i, int(masked_TN[i].sum())))
        before = rows_R
    last = int(found[0].rows_R[-1]) if len(found[0].rows_R) else -1
    return RowPlan(tuple(found), bounds, last)
