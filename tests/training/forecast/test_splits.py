"""A plan proposes the split of the GPUs where one helps: because all doing both do not fit, or are slower."""

from __future__ import annotations

from pathlib import Path

import pytest

from eagle3cli.settings.tables import Settings
from eagle3cli.training.forecast.splits import Splits, plan_splits
from tests.conftest import RunCli
from tests.speed.step.splits import inputs_of

GB = 10**9


def splits(name: str, gpus: int, room: int | None, tp_size: int = 1, **launch: object) -> Splits:
    train = {"batch_size": 8 * gpus, "max_tokens_per_gpu": 16384}
    settings = Settings.model_validate({"train": train, "launch": launch, "target": {"tp_size": tp_size}})
    found = plan_splits(settings, inputs_of(name, gpus), gpus, room and room * GB)
    assert found is not None
    return found


def test_a_target_that_leaves_no_room_for_a_draft_gets_gpus_of_its_own() -> None:
    found = splits("qwen3-235b-a22b", 16, 70, 8)
    assert (found.helps, found.best and found.best.target_gpus) == ("memory", 8)
    assert found.lines()[0].startswith("a split fits where all doing both do not, --target-gpus 8: ")
    assert splits("qwen3-235b-a22b", 16, 80, 8).helps is None  # side by side they are faster


@pytest.mark.slow
def test_it_is_spread_over_more_where_it_does_not_fit() -> None:
    found = splits("qwen3-235b-a22b", 16, 70)
    assert found.best is not None
    assert (found.best.target_gpus, found.best.tp_size) == (8, 8)
    assert "--target-gpus 8 --tp-size 8: " in found.lines()[0]
    assert splits("qwen3-235b-a22b", 4, 70).lines() == []  # no split of four holds it


def test_the_best_split_stands_beside_all_doing_both() -> None:
    found = splits("llama-3.1-8b", 8, None)
    best, together = found.best, found.together
    assert best is not None
    assert together is not None
    assert together.target_bytes == 0
    others = [splits("llama-3.1-8b", 8, None, target_gpus=targets).best for targets in (1, 3)]
    assert others == [best, best]  # whatever the run has now
    assert found.lines()[0].startswith("no split of the 8 is faster than all doing both; the best, --target-gpus ")


def test_nothing_is_said_where_there_is_nothing_to_split() -> None:
    inputs = inputs_of("llama-3.1-8b", 8)
    assert plan_splits(Settings.model_validate({"train": {"mode": "offline"}}), inputs, 8, None) is None
    assert plan_splits(Settings(), inputs, 1, None) is None


def test_a_plan_says_it(place: Path, run_cli: RunCli) -> None:
    told = run_cli("train", "--dry-run", "--gpus", "3", "--json", "--device", "cpu").json
    best = told["splits"]["best"]
    assert best["target_gpus"] in (1, 2)
    again = run_cli(
        "train", "--dry-run", "--gpus", "3", "--json", "--device", "cpu", "--target-gpus", best["target_gpus"]
    )
    assert again.json["memory"]["peak_bytes"] == pytest.approx(best["draft_bytes"], rel=0.2)
    assert f"--target-gpus {best['target_gpus']}: " in run_cli("train", "--dry-run", "--gpus", "3").out
