"""A step without a finite gradient leaves on disk what each rank had of it, and no rank takes more than its share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from eagle3cli.backends.batches.batch import RowsByRank, TargetBatch, partition
from eagle3cli.backends.batches.online import SharedSource
from eagle3cli.runtime.distributed import Ranks
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.training import TrainSettings
from eagle3cli.training.batches import Batches, Sampler
from eagle3cli.training.checkpoint.state import TrainState
from eagle3cli.training.skipped import skip_step
from tests.failing import fails
from tests.training.test_trainer import LENGTHS, RandomSource


class Counting(RandomSource):
    """Remembers which rows were asked for together."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[int]] = []

    def batch(self, rows: Sequence[int]) -> TargetBatch:
        self.asked.append(list(rows))
        return super().batch(rows)


class SharedCounting(SharedSource):
    """Remembers the same of a target that several processes share."""

    def __init__(self) -> None:
        self.asked: list[RowsByRank] = []

    @property
    def lengths(self) -> Sequence[int]:
        return LENGTHS

    def own_batch(self, rows_by_rank: RowsByRank, rank: int) -> TargetBatch | None:
        self.asked.append(rows_by_rank)
        return RandomSource().batch(rows_by_rank[rank]) if rows_by_rank[rank] else None


class Alone(Ranks):
    """One of several ranks, without the others."""

    def barrier(self) -> None:
        """The others are not there."""


class Told(Silent):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def skip(
    folder: Path, ranks: Ranks, source: Any = None, *, batch: int = 6, micro: int | None = None, limit: int = 9
) -> tuple[Any, str]:
    source, told = source or Counting(), Told()
    batches = Batches(source, Sampler(len(LENGTHS), batch, 0), micro, ranks)
    settings = TrainSettings(max_skipped_steps=limit)
    skip_step(folder, TrainState(), batches, float("nan"), settings, told)
    return source, told.warnings[0]


@pytest.mark.parametrize("micro", [None, 1, 2])
def test_each_rank_saves_its_own_share(tmp_path: Path, micro: int | None) -> None:
    shares = partition(Sampler(len(LENGTHS), 6, 0).batch(0), LENGTHS, 2)
    for rank, share in enumerate(shares):
        source, said = skip(tmp_path, Alone(rank, 2), micro=micro)
        assert [row for rows in source.asked for row in rows] == share
        assert max(map(len, source.asked)) == (micro or len(share))
        assert said.endswith(f"its batch is in {tmp_path}/skipped/step_1.rank_*.safetensors, written by ranks 0, 1")
        with safe_open(tmp_path / "skipped" / f"step_1.rank_{rank}.safetensors", "pt") as file:
            assert set(file.keys()) == {"token_ids", "loss_mask", "aux", "last", "top"}
            assert json.loads(file.metadata()["rows"]) == share
            bounds = json.loads(file.metadata()["bounds"])
            whole = RandomSource().batch(share)
            assert bounds == list(whole.cu_seqlens)
            for name, wanted in {"token_ids": whole.token_ids_N, "aux": whole.aux_NC, "top": whole.top_N}.items():
                assert torch.equal(file.get_tensor(name), wanted)
    assert sorted(path.name for path in (tmp_path / "skipped").iterdir()) == [
        "step_1.rank_0.safetensors",
        "step_1.rank_1.safetensors",
    ]


def test_a_rank_without_rows_takes_part_and_writes_nothing(tmp_path: Path) -> None:
    shares = partition(Sampler(len(LENGTHS), 2, 0).batch(0), LENGTHS, 3)
    without = next(rank for rank, share in enumerate(shares) if not share)
    source, said = skip(tmp_path, Alone(without, 3), SharedCounting(), batch=2)
    assert source.asked == [shares]
    assert not (tmp_path / "skipped").exists()
    assert str(without) not in said.rpartition("written by ranks")[2]


def test_one_process_says_what_it_said(tmp_path: Path) -> None:
    _, said = skip(tmp_path, Ranks())
    assert said == f"step 1: gradient norm nan; step left out, its batch is in {tmp_path}/skipped/step_1.safetensors"
    with fails("not-finite-gradient", "1") as caught:
        skip(tmp_path, Ranks(), limit=1)
    assert "(saved in " in str(caught.value.where)
