"""How sequences are dealt: every position once, equal work, and what the unroll reads ahead is there."""

from __future__ import annotations

from itertools import accumulate

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eagle3cli.backends.batches.context import KEY_WORK, STEP_WORK, deal

masks = st.lists(st.lists(st.booleans(), min_size=1, max_size=40), min_size=1, max_size=4)


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(masks, st.integers(1, 5), st.integers(1, 7))
def test_every_position_is_one_ranks_own(sequences: list[list[bool]], world_size: int, steps: int) -> None:
    cu_seqlens = tuple(accumulate(map(len, sequences), initial=0))
    mask_N = torch.tensor([said for sequence in sequences for said in sequence])
    shards = [deal(cu_seqlens, mask_N, rank, world_size, steps=steps) for rank in range(world_size)]
    own = [shard.packed_n[shard.own_M] for shard in shards]
    assert torch.equal(torch.cat(own).sort().values, torch.arange(cu_seqlens[-1]))
    assert all(bool((position_M.diff() > 0).all()) for position_M in own)
    assert {shard.width for shard in shards} == {max(map(len, own))}
    # Put side by side as the gather does, in the order that all ranks know, they are the whole batch again.
    padded = torch.cat([torch.nn.functional.pad(p, (0, shards[0].width - len(p)), value=-1) for p in own])
    for shard in shards:
        assert torch.equal(padded[shard.order_S], torch.arange(cu_seqlens[-1]))
        for begin, position in zip(shard.begin_n.tolist(), shard.packed_n.tolist(), strict=True):
            assert begin == max(bound for bound in cu_seqlens[:-1] if bound <= position)
        for local in shard.own_M.tolist():
            position = int(shard.packed_n[local])
            end = min(bound for bound in cu_seqlens if bound > position)
            ahead = range(position, min(position + steps + 2, end))  # the answer of the last step's teacher
            piece_end = min(bound for bound in shard.pieces if bound > local)
            assert shard.packed_n[local : min(local + steps + 2, piece_end)].tolist() == list(ahead)


def test_work_is_equal_whatever_the_share_with_loss() -> None:
    """By keys and steps of the unroll; and where all has loss, the ranks see as many keys, too."""
    size, steps, world_size = 60_000, 7, 4
    for share in (0.05, 0.5, 1.0):
        mask_N = torch.arange(size) >= (1 - share) * size
        work, seen = [], []
        for rank in range(world_size):
            shard = deal((0, size), mask_N, rank, world_size, steps=steps)
            own = shard.packed_n[shard.own_M]
            work.append(len(own) * KEY_WORK + STEP_WORK * steps * int(mask_N[own].sum()))
            seen.append(int(own[mask_N[own]].sum()))
        assert max(work) < 1.001 * min(work)
        assert share < 1 or max(seen) < 1.02 * min(seen)
