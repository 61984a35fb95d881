"""Sequences dealt to several ranks: losses and gradients are those of one rank that has them whole."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from torch import Tensor, multiprocessing
from torch import distributed as dist

from eagle3cli.backends.batches.context import deal
from eagle3cli.backends.target.logits import Head
from eagle3cli.models.config import DraftConfig
from eagle3cli.training.ttt.attention import attend
from eagle3cli.training.ttt.loss import Teacher, ttt_loss
from eagle3cli.training.ttt.unroll import PositionPlan, dealt, plan_positions, step_zero_alone, unroll
from tests.training.ttt.test_unroll import CONFIG, DEPTHS, HIDDEN, KL, VOCAB, WIDE, random_draft

MASKS = (
    [False] * 5 + [True] * 70 + [False] * 9 + [True] * 30,
    [True] * 2,  # fewer positions than there are pieces
    [False] * 40,  # keys that nobody's loss sees
    [False] * 3 + [True] * 4,
)
CONFIGS = {
    "plain": CONFIG,
    "three layers": replace(WIDE, own_embedding=False),
    "a window with sinks": replace(CONFIG, window=9, sinks=2),
}


def whole_batch() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    size = sum(map(len, MASKS))
    head = torch.randn(VOCAB, HIDDEN, generator=generator)
    last = torch.randn(size, HIDDEN, generator=generator)
    return {
        "ids": torch.randint(VOCAB, (size,), generator=generator),
        "aux": torch.randn(size, 3 * HIDDEN, generator=generator),
        "last": last,
        "top": (last @ head.T).argmax(-1),
        "mask": torch.tensor([said for mask in MASKS for said in mask]),
        "embedding": torch.randn(VOCAB, HIDDEN, generator=generator),
        "head": head,
    }


def plan_of(parts: dict[str, Tensor], cu_seqlens: tuple[int, ...], t2d: Tensor, own: Tensor | None) -> PositionPlan:
    return plan_positions(parts["mask"], cu_seqlens, t2d[parts["top"]], DEPTHS, "serving", own)


def loss_and_gradients(rank: int, world_size: int, config: DraftConfig) -> list[Tensor]:
    """This rank's sum of the losses and its gradients; alone, of all positions."""
    draft = random_draft(7, config)
    parts = whole_batch()
    head = parts.pop("head")
    embedding = parts.pop("embedding")
    cu_seqlens = tuple(accumulate(map(len, MASKS), initial=0))
    if world_size == 1:
        plan = plan_of(parts, cu_seqlens, draft.t2d, None)
    else:
        shard = deal(cu_seqlens, parts["mask"], rank, world_size, steps=DEPTHS)
        parts = {name: values[shard.packed_n] for name, values in parts.items()}
        parts["aux"][~shard.own_n] = torch.nan  # what is not here may not be read
        plan = dealt(plan_of(parts, shard.pieces, draft.t2d, shard.own_n), shard)
    if plan.empty:
        loss = step_zero_alone(draft, parts["ids"], parts["aux"], embedding, plan, attend)
    else:
        normed = unroll(draft, parts["ids"], parts["aux"], embedding, plan)
        teacher = Teacher(parts["last"], parts["top"], Head(head[draft.draft_ids]), draft.draft_ids)
        loss, _ = ttt_loss(normed, draft.lm_head.weight, teacher, plan, KL)
    loss.backward()
    weights = draft.parameters()
    return [loss.detach(), *(torch.zeros_like(w) if w.grad is None else w.grad for w in weights)]


def one_of_several(rank: int, world_size: int, place: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{place}/meet", rank=rank, world_size=world_size)
    for name, config in CONFIGS.items():
        found = loss_and_gradients(rank, world_size, config)
        for values in found:
            dist.all_reduce(values)
        if rank == 0:
            torch.save(found, f"{place}/{name}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 3])
def test_losses_and_gradients_are_those_of_one_rank(tmp_path: Path, world_size: int) -> None:
    """To 1e-6 of the largest: what another order of fp32 sums changes."""
    multiprocessing.spawn(one_of_several, (world_size, str(tmp_path)), nprocs=world_size)
    for name, config in CONFIGS.items():
        want = loss_and_gradients(0, 1, config)
        assert float(want[0]) > 0
        for mine, theirs in zip(torch.load(tmp_path / f"{name}.pt"), want, strict=True):
            assert float((mine - theirs).abs().max()) <= 1e-6 * float(theirs.abs().max()), name
