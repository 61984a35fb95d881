"""What a maximum length leaves of rows: counted while they are tokenized, told by cache and by its plan."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from eagle3cli.data.tokens.lengths import LENGTHS, count_kept, kept_lines, kept_summary, sum_kept
from tests.conftest import RunCli
from tests.data.tokens.test_cache import build, talk, target, write  # noqa: F401 (a fixture)


def test_a_row_is_counted_at_every_length() -> None:
    counted = count_kept(700, [(100, 300), (500, 700)], 600)
    assert counted[0].tolist() == [0, *[1] * (len(LENGTHS) - 1), 0, 1]
    assert counted[1].tolist() == [212, *[400] * (len(LENGTHS) - 1), 300, 400]
    assert np.array_equal(sum_kept([counted, counted]), 2 * counted)
    assert not sum_kept([]).any()


def test_what_people_are_told() -> None:
    rows = [count_kept(400, [(10, 400)], 512)] * 97 + [count_kept(3000, [(2000, 3000)], 512)] * 3
    summary = kept_summary(sum_kept(rows), 512)
    assert summary["rows"] == pytest.approx(0.97)
    assert summary["reply_tokens"] == pytest.approx(97 * 390 / (97 * 390 + 3000))
    assert list(summary["by_length"]) == [512, 1024, 2048, 4096]
    first, second = kept_lines(summary)
    assert first == (
        "max_length 512 keeps 97.0% of rows whole and 92.7% of reply tokens; "
        "1,024: 97.0% and 92.7%, 2,048: 97.0% and 93.0%, 4,096: 100% and 100%"
    )
    assert second.startswith("suggested: --max-length 4096")
    assert kept_lines(kept_summary(sum_kept(rows[:97]), 512)) == []


def test_the_cache_counts_what_it_cuts(tmp_path: Path, target: Path) -> None:  # noqa: F811
    """The same as two caches of which one cuts nothing."""
    write(tmp_path / "train.jsonl", [talk(n) for n in range(1, 6)])
    whole = build(tmp_path, target)
    limit = sorted(whole.train.lengths)[2] - 1
    cut = build(tmp_path, target, max_length=limit)
    kept = cut.summary["train"]["kept"]
    assert kept["rows"] == sum(length <= limit for length in whole.train.lengths) / 5
    assert kept["reply_tokens"] == cut.summary["train"]["loss_tokens"] / whole.summary["train"]["loss_tokens"]
    assert whole.summary["train"]["kept"]["rows"] == whole.summary["train"]["kept"]["reply_tokens"] == 1


def test_cache_and_its_plan_say_it(run_cli: RunCli, tmp_path: Path, tiny: Path) -> None:
    write(tmp_path / "train.jsonl", [talk(n) for n in range(1, 6)])
    words = ("cache", "--target-model-path", str(tiny), "--train-data-path", "train.jsonl", "--max-length", "12")
    options = ("--draft-vocab-size", "100", "--no-check-masks")
    ran = run_cli(*words, *options, cwd=tmp_path)
    assert ran.code == 0, ran.err
    assert "max_length 12 keeps 0.0% of rows whole and" in ran.out
    assert "suggested: --max-length 512" in ran.out
    planned = run_cli(*words, *options, "--dry-run", cwd=tmp_path)
    assert "train, max_length 12 keeps 0.0% of rows whole and" in planned.out, planned.err
