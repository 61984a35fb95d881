"""How the sequences of a packed batch are dealt to the ranks of a group, and what each of them holds: context parallel.

A sequence is cut into two pieces for each rank, of which rank r gets piece r and the r-th from the end: late positions
see many keys and early ones few, so that all ranks have about the same to do. The pieces are of equal work, not of
equal length: a token that is trained on goes through the draft at every step of the unroll, another one just gives a
key. A rank holds its own positions and, behind each piece, the few tokens that the unroll reads ahead (the halo), whose
teachers stand there.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from eagle3cli.runtime.distributed import Ranks


@dataclass(frozen=True)
class ContextShard:
    """A rank's part of a packed batch. ``n`` counts the tokens that it holds, ``M`` its own positions among them."""

    packed_n: Tensor
    """Position of every token in the whole packed batch."""
    begin_n: Tensor
    """Position there at which its sequence begins."""
    own_M: Tensor
    """Which of the tokens held are the rank's own, ascending."""
    order_S: Tensor
    """Of every position of the whole batch where its states lie among those of all ranks, ``width`` of each."""
    width: int
    """Own positions of the rank that has most of them."""
    cu_seqlens: tuple[int, ...]
    """Sequences of the whole batch."""
    pieces: tuple[int, ...]
    """The same of the tokens held: piece b is ``pieces[b]:pieces[b+1]``."""
    world_size: int
    group: Any = None
    """The ranks' process group."""
    waiting: Callable[[], AbstractContextManager[None]] = nullcontext
    """Within it this process may have to wait for the others of the group."""

    @property
    def own_n(self) -> Tensor:
        """Whether each token held is an own position, bool."""
        return torch.zeros(len(self.packed_n), dtype=torch.bool, device=self.own_M.device).index_fill_(
            0, self.own_M, True
        )

    def to(self, device: torch.device) -> ContextShard:
        """The same on a device."""
        moved = {name: getattr(self, name).to(device) for name in ("packed_n", "begin_n", "own_M", "order_S")}
        return replace(self, **moved)


KEY_WORK, STEP_WORK = 2, 3
"""Time and memory of a token that gives a key alone, and of one more step of the unroll, by the forecast of either."""


def pieces_of(loss_mask_S: Tensor, rank: int, world_size: int, steps: int) -> list[tuple[int, int]]:
    """The pieces of a sequence that a rank gets, as ``[begin, end)``; neighbours are one, empty ones are left out.

    ``loss_mask_S`` says which of its tokens are trained on, ``steps`` how often.
    """
    # In whole numbers, so that all ranks come to the same cuts.
    done_S = (KEY_WORK + STEP_WORK * steps * loss_mask_S.long()).cumsum(0)
    shares = torch.arange(1, 2 * world_size) * done_S[-1] // (2 * world_size)
    cuts = [0, *torch.searchsorted(done_S, shares, right=True).tolist(), len(done_S)]
    first, second = ((cuts[at], cuts[at + 1]) for at in (rank, 2 * world_size - 1 - rank))
    joined = [(first[0], second[1])] if first[1] == second[0] else [first, second]
    return [piece for piece in joined if piece[0] < piece[1]]


def deal(cu_seqlens: tuple[int, ...], loss_mask_N: Tensor, rank: int, world_size: int, *, steps: int) -> ContextShard:
    """A rank's part of sequences ``cu_seqlens[b]:cu_seqlens[b+1]``, for an unroll of so many ``steps``.

    The last step reads as many tokens ahead, and its answer stands one further: so long is the halo.
    """
    halo = steps + 1
    packed = [list[Tensor]() for _ in range(world_size)]
    held, begins, own = list[Tensor](), list[int](), list[Tensor]()
    ends = [0]
    for begin, end in pairwise(cu_seqlens):
        for other in range(world_size):
            pieces = pieces_of(loss_mask_N[begin:end], other, world_size, steps)
            for first, last in ((begin + first, begin + last) for first, last in pieces):
                packed[other].append(torch.arange(first, last))
                if other != rank:
                    continue
                held.append(torch.arange(first, min(last + halo, end)))
                own.append(ends[-1] + torch.arange(last - first))
                begins.append(begin)
                ends.append(ends[-1] + len(held[-1]))
    by_rank = [_joined(parts) for parts in packed]
    width = max(map(len, by_rank))
    order_S = torch.empty(cu_seqlens[-1], dtype=torch.long)
    for other, position_M in enumerate(by_rank):
        order_S[position_M] = other * width + torch.arange(len(position_M))
    lengths = torch.tensor([len(piece) for piece in held], dtype=torch.long)
    begin_n = torch.repeat_interleave(torch.tensor(begins, dtype=torch.long), lengths)
    return ContextShard(
        _joined(held), begin_n, _joined(own), order_S, width, cu_seqlens, tuple(ends), world_size=world_size
    )


@dataclass(frozen=True)
class ContextGroup:
    """Neighbouring ranks that share sequences, of which this process is one."""

    rank: int
    size: int
    steps: int
    """Of the unroll."""
    group: Any
    ranks: Ranks
    """All ranks of the run."""

    def deal(self, cu_seqlens: tuple[int, ...], loss_mask_N: Tensor) -> ContextShard:
        """This rank's part of a packed batch with these sequences."""
        return replace(self.deal_to(self.rank, cu_seqlens, loss_mask_N), group=self.group, waiting=self.ranks.waiting)

    def deal_to(self, rank: int, cu_seqlens: tuple[int, ...], loss_mask_N: Tensor) -> ContextShard:
        """The part of a rank of the group."""
        return deal(cu_seqlens, loss_mask_N, rank, self.size, steps=self.steps)


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.long)
