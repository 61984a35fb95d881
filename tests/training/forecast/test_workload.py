"""The largest micro batch of a run, however its batches are cut, and smaller ones that are proposed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from eagle3cli.settings.tables import Settings
from eagle3cli.training.forecast.inputs import RowLengths
from eagle3cli.training.forecast.memory import target_pass_parts
from eagle3cli.training.forecast.proposals import _smaller_micro_batches
from eagle3cli.training.forecast.workload import planned_steps
from tests.conftest import RunCli
from tests.training.forecast.test_memory import WORK

ROWS = RowLengths(
    lengths=[300, 100, 250, 40, 500, 60, 120, 80], loss_tokens=[30, 10, 25, 4, 50, 6, 12, 8], exact=True, where="here"
)


def settings_with(**train: object) -> Settings:
    return Settings.model_validate({"train": {"batch_size": 8, **train}})


def test_a_plan_knows_the_budget_of_tokens() -> None:
    whole = planned_steps(settings_with(), ROWS, 1)
    assert (whole.largest.tokens, whole.most_micro_batches) == (1450, 1)
    cut = planned_steps(settings_with(max_tokens_per_gpu=600), ROWS, 1)
    assert (cut.largest.tokens, cut.largest.sequences, cut.most_micro_batches) == (550, 2, 3)
    alone = planned_steps(settings_with(max_tokens_per_gpu=200), ROWS, 1)
    assert (alone.largest.tokens, alone.largest.sequences) == (500, 1)
    two = planned_steps(settings_with(max_tokens_per_gpu=1000), ROWS, 2)
    assert two.most_micro_batches == 1


def test_a_plan_knows_a_ranks_part_of_sequences() -> None:
    """Half of the work, what the unroll reads ahead behind each piece, and the keys of all."""
    whole = planned_steps(settings_with(mode="offline"), ROWS, 1).largest
    part = planned_steps(settings_with(mode="offline", context_parallel=2), ROWS, 2).largest
    assert part.shared_tokens == whole.tokens == 1450
    assert 0.4 * whole.loss_tokens < part.loss_tokens < 0.6 * whole.loss_tokens
    assert whole.tokens / 4 < part.tokens < 0.9 * whole.tokens
    groups = planned_steps(settings_with(mode="offline", context_parallel=2, max_tokens_per_gpu=300), ROWS, 4).largest
    assert 500 <= groups.shared_tokens <= 600  # of two ranks together


def test_a_smaller_budget_is_proposed_where_there_is_one() -> None:
    flags = [flag for flag, _ in _smaller_micro_batches(settings_with(max_tokens_per_gpu=4000), 1)]
    assert flags == ["--max-tokens-per-gpu 2000", "--max-tokens-per-gpu 1000"]
    flags = [flag for flag, _ in _smaller_micro_batches(settings_with(), 4)]
    assert flags == ["--draft-micro-batch-size 1"]


@pytest.mark.parametrize("cpu", [False, True])
def test_padding_that_nobody_runs_is_not_foretold(cpu: bool) -> None:
    unlike = replace(WORK, tokens=3000, sequences=20, longest_sequence=2000, cpu=cpu)
    alike = replace(unlike, tokens=20 * 2000)
    packed, padded = (sum(target_pass_parts(work).values()) for work in (unlike, alike))
    assert packed < padded / 5


def test_a_dry_run_tells_the_budget_and_the_memory_that_it_saves(place: Path, run_cli: RunCli) -> None:
    gpu = ("train", "--dry-run", "--json", "--device", "cuda", "--max-length", "2048", "--batch-size", "14")
    whole = run_cli(*gpu).json["memory"]
    cut = run_cli(*gpu, "--max-tokens-per-gpu", "64").json["memory"]
    assert cut["peak_bytes"] < whole["peak_bytes"]
    assert "batch 4, 4,096 tokens at once" in run_cli("train", "--dry-run", "--max-tokens-per-gpu", "4096").out
