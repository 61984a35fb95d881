"""Rounds that a stopped benchmark leaves are taken up by the next, with the same settings only."""

from __future__ import annotations

from pathlib import Path

from eagle3cli.serving.bench.configs import parse_config
from eagle3cli.serving.bench.results import Case, ResultRow
from eagle3cli.serving.bench.rounds import KeptRounds
from eagle3cli.serving.bench.session import Measurement

CASE = Case("mtbench", parse_config("1,3,1,4"))
SETTINGS: ResultRow = {"max_tokens": 64}


def test_a_round_is_found_again_whatever_stands_behind_it(tmp_path: Path) -> None:
    results = tmp_path / "bench" / "results.jsonl"
    kept = KeptRounds.open(results, SETTINGS, overwrite=False)
    assert kept.get(CASE, 0, 1) is None
    kept.add(CASE, 0, 1, Measurement(seconds=2.5, cpu_seconds=2.0))
    with kept.path.open("a") as file:
        file.write('{"settings": "torn')
    again = KeptRounds.open(results, SETTINGS, overwrite=False)
    assert again.get(CASE, 0, 1) == Measurement(seconds=2.5, cpu_seconds=2.0)
    assert again.get(CASE, 0, 2) is None
    assert again.get(CASE, 1, 1) is None
    assert KeptRounds.open(results, {"max_tokens": 1}, overwrite=False).get(CASE, 0, 1) is None
    assert KeptRounds.open(results, SETTINGS, overwrite=True).get(CASE, 0, 1) is None
    assert not kept.path.exists()
