"""Which rows of a batch each process trains on."""

from __future__ import annotations

from collections.abc import Sequence

from eagle3cli.runtime.distributed import Ranks


def shares(rows: Sequence[int], lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """The rows of every rank, each row at one rank, with about as many tokens for each; a rank's rows keep their order.

    The longest row goes first, always to the rank that has the fewest tokens (Graham's rule: at most a third above the
    best there is). With fewer rows than ranks some get none.
    """
    loads, owner = [0] * ranks, dict[int, int]()
    for at in sorted(range(len(rows)), key=lambda i: (-lengths[rows[i]], i)):
        owner[at] = min(range(ranks), key=lambda rank: (loads[rank], rank))
        loads[owner[at]] += lengths[rows[at]]
    return [[row for at, row in enumerate(rows) if owner[at] == rank] for rank in range(ranks)]


def share_of(rows: Sequence[int], lengths: Sequence[int], ranks: Ranks, micro: int | None) -> list[list[int]]:
    """A rank's micro batches of a batch: as many as every other rank has, so that its last ones may be empty."""
    cut = [micro_batches(part, micro) for part in shares(rows, lengths, ranks.world_size)]
    mine = cut[ranks.rank]
    return [*mine, *[[] for _ in range(max(map(len, cut)) - len(mine))]]


def micro_batches(rows: Sequence[int], size: int | None) -> list[list[int]]:
    """A rank's rows cut into what goes through the draft at once; None is all of them."""
    size = size or max(1, len(rows))
    return [list(rows[at : at + size]) for at in range(0, len(rows), size)]


def balance(batches: Sequence[Sequence[int]], lengths: Sequence[int], ranks: int) -> float:
    """Share of the ranks' time that is work, over these batches: mean tokens of a rank by tokens of the busiest one."""
    busiest = worked = 0
    for rows in batches:
        loads = [sum(lengths[row] for row in share) for share in shares(rows, lengths, ranks)]
        busiest, worked = busiest + max(loads), worked + sum(loads)
    return worked / max(1, busiest * ranks)
