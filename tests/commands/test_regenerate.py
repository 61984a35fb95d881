"""eagle3 regenerate as typed."""

from __future__ import annotations

import json
from pathlib import Path

from tests.conftest import RunCli


def test_the_command_tells_where_every_row_went(run_cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    rows = [{"id": "a", "conversations": [{"role": "user", "content": "Hi."}]}, {"id": "b", "conversations": []}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["regenerate", "--model-path", tiny, "--input-path", "in.jsonl", "--max-tokens", 5, "--output-dir", "out"]
    done = run_cli(*words)
    assert done.code == 3
    assert "1 generated" in done.out
    assert "1 x no messages" in done.out
    again = run_cli(*words, "--json")
    assert again.json["rows_now"] == 0
    assert again.json["errors"] == 1


def test_a_missing_input_is_a_clear_error(run_cli: RunCli, tiny: Path) -> None:
    done = run_cli("regenerate", "--model-path", tiny)
    assert (done.code, "--input-path" in done.err) == (2, True)
