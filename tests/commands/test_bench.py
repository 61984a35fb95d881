"""eagle3 bench as typed."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import RunCli


def test_a_baseline_needs_no_draft_and_leaves_a_table(run_cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    done = run_cli(
        "bench", "--model-path", tiny, "--benchmark-list", "mtbench-like:3", "--config-list", "1,0,0,0", "2,0,0,0",
        "--max-tokens", 4, "--output", "out/results.jsonl",
    )  # fmt: skip
    assert done.code == 0, done.err
    assert "mtbench-like:3" in done.out
    assert "| mtbench-like:3 | 2 | 0 |" in (tmp_path / "out" / "results.md").read_text()
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert kinds.count("configuration") == 2


def test_trees_are_refused_with_the_chain_to_type(run_cli: RunCli, tiny: Path) -> None:
    done = run_cli("bench", "--model-path", tiny, "--config-list", "4,7,10,60")
    assert (done.code, "write 4,7,1,8" in done.err) == (2, True)
