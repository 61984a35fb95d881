"""Rows of a log are trained on or held out, never both, and every log can be split."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eagle3cli.pipeline.refresh.rows import split_rows


@pytest.mark.parametrize(
    ("openings", "mixed"),
    [
        ([str(i) for i in range(20)], 0),
        (["Hello"] * 20, 5),  # a program's requests all begin alike
        (["Hello"] * 16 + ["a", "b", "b", "c"], 1),
        (["Hello"] * 10 + [str(i) for i in range(10)], 0),
    ],
)
def test_rows_that_begin_alike_are_on_one_side_where_that_is_possible(
    tmp_path: Path, openings: list[str], mixed: int
) -> None:
    rows = tmp_path / "rows.jsonl"
    lines = []
    for number, opening in enumerate(openings):
        texts = [("user", opening), ("assistant", "Yes?"), ("user", f"Say {number}."), ("assistant", "So.")]
        messages = [{"role": role, "content": text} for role, text in texts]
        lines.append(json.dumps({"id": str(number), "conversations": messages}) + "\n")
    rows.write_text("".join(lines))
    train, held_out = tmp_path / "dataset" / "train.jsonl", tmp_path / "dataset" / "eval.jsonl"
    assert split_rows(rows, train, held_out, 5) == mixed
    sides = [path.read_text().splitlines(keepends=True) for path in (train, held_out)]
    assert len(sides[1]) == 5
    assert sorted(sides[0] + sides[1]) == sorted(lines)
    alike = openings.count("Hello")
    held_out_alike = [json.loads(line)["id"] for line in sides[1] if '"Hello"' in line]
    assert held_out_alike == [str(number) for number in range(alike - mixed, alike)]
    begin = [{json.loads(line)["conversations"][0]["content"] for line in side} for side in sides]
    assert begin[0] & begin[1] == ({"Hello"} if mixed else set())
