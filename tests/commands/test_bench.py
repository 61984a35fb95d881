"""eagle3 bench as typed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.conftest import RunCli


def test_a_baseline_needs_no_draft_and_leaves_a_table_and_a_page(run_cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    done = run_cli(
        "bench", "--engine", "local", "--model-path", tiny, "--benchmark-list", "mtbench-like:3",
        "--config-list", "1,0,0,0", "2,0,0,0", "--max-tokens", 4, "--output", "out/results.jsonl",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "mtbench-like:3" in done.out
    assert "| mtbench-like:3 | 2,0,0,0 |" in (tmp_path / "out" / "results.md").read_text()
    page = (tmp_path / "out" / "results.html").read_text()
    assert "<svg" in page
    assert "://" not in page  # it needs nothing else
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert kinds.count("configuration") == 2


def test_trees_are_refused_with_the_chain_to_type(run_cli: RunCli, tiny: Path, shared: Path) -> None:
    draft = shared / "engines" / "tiny_eagle3" / "draft"
    for engine in ("local", "vllm"):
        words = ("bench", "--engine", engine, "--model-path", tiny, "--speculative-draft-model-path", draft)
        done = run_cli(*words, "--config-list", "4,7,10,60")
        assert (
            done.code,
            done.error == "invalid-value"
            and "4" in done.err
            and "7" in done.err
            and "1" in done.err
            and "8" in done.err,
        ) == (2, True)


@pytest.mark.slow
def test_a_missing_task_is_left_out_and_the_exit_code_says_so(run_cli: RunCli, tiny: Path) -> None:
    done = run_cli(
        "bench", "--engine", "local", "--model-path", tiny, "--benchmark-list", "mtbench-like:2", "cmmlu:200",
        "--config-list", "1,0,0,0", "--max-tokens", 3, "--json",
    )  # fmt: skip
    assert done.code == 3, done.err
    assert list(done.json["failed"]) == ["cmmlu:200"]
    assert len(done.json["configurations"]) == 1


def test_temperatures_below_zero_are_refused(run_cli: RunCli, tiny: Path) -> None:
    done = run_cli("bench", "--model-path", tiny, "--temperature=-1")
    assert (done.code, done.error == "invalid-value" and "0" in done.err) == (2, True)
