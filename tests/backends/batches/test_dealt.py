"""A live target over ranks that share sequences: passes are made once, and each rank gets its own positions."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from queue import Queue
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from eagle3cli.backends.batches import dealt
from eagle3cli.backends.batches.batch import TargetBatch
from eagle3cli.backends.batches.context import ContextGroup
from eagle3cli.backends.batches.dealt import DealtSource
from eagle3cli.backends.batches.online import OnlineSource
from eagle3cli.backends.target.group import SharedTarget
from eagle3cli.backends.target.logits import Head
from eagle3cli.data.tokens.rows import TokenRow, TokenRows
from eagle3cli.runtime.distributed import Ranks

HIDDEN, VOCAB, STEPS = 4, 7, 2
LENGTHS = [9, 1, 12, 5, 3]


@dataclass
class Target:
    """States that follow from the token and its place."""

    ran: list[int] = field(default_factory=list)
    """Length of every sequence that it has read."""
    path = "target"
    aux_layers = (1, 2)
    device = torch.device("cpu")
    embedding_VH = torch.zeros(VOCAB, HIDDEN)
    head = Head(torch.randn(VOCAB, HIDDEN, generator=torch.Generator().manual_seed(0)))

    def capture(self, sequences: Any) -> list[tuple[Tensor, Tensor]]:
        states = []
        for ids in sequences:
            self.ran.append(len(ids))
            place_S = torch.arange(len(ids)) * VOCAB + torch.tensor(ids)
            last_SH = torch.stack([(place_S * (h + 1)).sin() for h in range(HIDDEN)], 1)
            states.append((torch.cat((last_SH, -last_SH), 1), last_SH))
        return states


class Rows:
    lengths = LENGTHS

    def __getitem__(self, number: int) -> TokenRow:
        size = LENGTHS[number]
        ids = np.random.default_rng(number).integers(0, VOCAB, size).astype(np.int32)
        return TokenRow(str(number), ids, (np.arange(size) > 2).astype(np.uint8))


class Messages:
    """send and recv of a group, whose handle is its number and a rank in it."""

    def __init__(self) -> None:
        self.queues = {(g, a, b): Queue[Tensor]() for g in range(4) for a in range(4) for b in range(4)}

    def send(self, tensor: Tensor, group: tuple[int, int], group_dst: int) -> None:
        self.queues[group[0], group[1], group_dst].put(tensor.clone())

    def recv(self, tensor: Tensor, group: tuple[int, int], group_src: int) -> None:
        tensor.copy_(self.queues[group[0], group_src, group[1]].get(timeout=30))


@pytest.mark.parametrize(("context", "tp_size", "world_size"), [(3, 1, 3), (2, 1, 4), (4, 2, 4), (2, 2, 2), (2, 4, 4)])
def test_ranks_get_what_the_whole_batch_has_at_their_positions(
    monkeypatch: pytest.MonkeyPatch, context: int, tp_size: int, world_size: int
) -> None:
    monkeypatch.setattr(dealt, "dist", Messages())
    rows = cast(TokenRows, Rows())
    groups = [[2, 0, 1], [3, 4]][: world_size // context]
    by_rank = [groups[rank // context] for rank in range(world_size)]
    targets = [Target() for _ in range(world_size)]

    def part(rank: int) -> TargetBatch | None:
        ranks = Ranks(rank, world_size)
        group = ContextGroup(rank % context, context, STEPS, (rank // context, rank % context), ranks)
        target = targets[rank] if tp_size == 1 else SharedTarget(targets[rank], ranks, tp_size)
        return DealtSource(target, rows, group).own_batch(by_rank, rank)

    with ThreadPoolExecutor(world_size) as pool:
        parts = list(pool.map(part, range(world_size)))
    for number, group in enumerate(groups):
        whole = OnlineSource(Target(), rows).batch(group)
        own = torch.zeros(len(whole.token_ids_N), dtype=torch.long)
        for batch in parts[number * context : (number + 1) * context]:
            assert batch is not None
            assert batch.shard is not None
            at_n, mine_M = batch.shard.packed_n, batch.shard.own_M
            own[at_n[mine_M]] += 1
            torch.testing.assert_close(batch.aux_NC[mine_M], whole.aux_NC[at_n[mine_M]])
            for name in ("token_ids_N", "loss_mask_N", "last_NH", "top_N"):
                torch.testing.assert_close(getattr(batch, name), getattr(whole, name)[at_n])
        assert bool((own == 1).all())
    # A target's ranks read the same, and all targets together each row of theirs once.
    read = [targets[first].ran for first in range(0, world_size, tp_size)]
    assert sorted(length for of_one in read for length in of_one) == sorted(LENGTHS[n] for g in groups for n in g)
    assert all(a.ran == b.ran for a, b in pairwise(targets[:tp_size]))
