"""Questions out of the rows of benchmark data sets, each in its own layout, with what a right answer is held to.

Rows that hold ``turns`` or a conversation are asked as they stand, whatever the task.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from eagle3cli.data.conversations import to_conversation
from eagle3cli.errors import DataError

STEP_BY_STEP = "\nPlease reason step by step, and put your final answer within \\boxed{}."
CHOICE = "\n\n请从 A、B、C、D 中选出正确答案,最后以“答案:X”的形式作答。"


@dataclass(frozen=True)
class Check:
    """What a right answer is: the number or text ``expected``, or for ``code`` the ``tests`` that it passes.

    ``begun`` is code that the answer goes on with, ``entry`` the function that it has to define.
    """

    kind: Literal["number", "math", "choice", "code"]
    expected: str = ""
    tests: str = ""
    begun: str = ""
    entry: str = ""


@dataclass(frozen=True)
class Question:
    """What is asked, turn by turn; ``check`` judges the answer to the first turn."""

    id: str
    turns: tuple[str, ...]
    category: str = ""
    system: str | None = None
    check: Check | None = None


Row = Mapping[str, Any]


def question_of(row: Row, number: int, task: str = "") -> Question:
    """The question in a row of ``task``'s data; raises DataError where there is none."""
    row_id = next((str(row[key]) for key in ("id", "question_id", "task_id") if row.get(key) is not None), str(number))
    category = str(row.get("category") or "")
    check = CHECKS[task](row) if task in CHECKS else None
    turns = row.get("turns")
    if turns is None and task in TEXTS and (text := TEXTS[task](row)) is not None:
        turns = [text]
    elif turns is None and {"prompt", "entry_point"} <= row.keys():
        turns = [_complete(row)]
    if turns is not None:
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, str) and turn for turn in turns):
            raise DataError("turns is not a list of texts")
        return Question(row_id, tuple(turns), category, None, check)
    conversation = to_conversation({key: value for key, value in row.items() if key != "finish"})
    asked = tuple(str(m["content"]) for m in conversation.messages if m["role"] == "user")
    system = next((str(m["content"]) for m in conversation.messages if m["role"] == "system"), None)
    return Question(row_id, asked, category, system, check)


def _text(*names: str, before: str = "", after: str = "") -> Callable[[Row], str | None]:
    """The first of these columns that is a text."""

    def read(row: Row) -> str | None:
        found = next((row[name] for name in names if isinstance(row.get(name), str) and row[name]), None)
        return None if found is None else f"{before}{found}{after}"

    return read


def _complete(row: Row) -> str | None:
    return f"Complete the code I provided.\n\n{row['prompt']}" if isinstance(row.get("prompt"), str) else None


def _choices(row: Row) -> str | None:
    asked = row.get("question") or row.get("Question")
    if not asked or not all(key in row for key in "ABCD"):
        return None
    return "\n".join([str(asked), *(f"{key}. {row[key]}" for key in "ABCD")]) + CHOICE


def _alpaca(row: Row) -> str | None:
    if not isinstance(row.get("instruction"), str):
        return None
    return str(row["instruction"]) + (f"\n\n{row['input']}" if row.get("input") else "")


def _mbpp(row: Row) -> str | None:
    asked = row.get("text") or row.get("prompt")
    if not asked or not row.get("test_list"):
        return None
    tests = "\n".join(row["test_list"])
    return f"You are an expert Python programmer. {asked}\nYour code should pass these tests:\n\n{tests}"


def _livecodebench(row: Row) -> str | None:
    if not row.get("question_content"):
        return None
    ways = "Write a Python program that reads the input from stdin and prints the answer to stdout."
    if row.get("starter_code"):
        ways = f"Write a Python solution that goes on from this code:\n\n```python\n{row['starter_code']}\n```"
    return f"{row['question_content']}\n\n{ways}"


TEXTS: dict[str, Callable[[Row], str | None]] = {
    "gsm8k": _text("question"),
    "math500": _text("problem", "question", after=STEP_BY_STEP),
    "humaneval": _complete,
    "mbpp": _mbpp,
    "livecodebench": _livecodebench,
    "ceval": _choices,
    "cmmlu": _choices,
    "alpaca": _alpaca,
    "qa": _text("question"),
    "summarisation": _text("article", "document", "text", before="Summarize: "),
}
"""The first turn out of a row in the layout of the task's own data set; None where the row has another one."""


def _number(row: Row) -> Check | None:
    found = re.findall(r"-?\d[\d,]*(?:\.\d+)?", str(row.get("answer") or "").rpartition("####")[2])
    return Check("number", found[-1].replace(",", "")) if found else None


def _math(row: Row) -> Check | None:
    return Check("math", str(row["answer"])) if row.get("answer") not in (None, "") else None


def _choice(row: Row) -> Check | None:
    right = str(row.get("answer") or row.get("Answer") or "").strip()
    return Check("choice", right) if right in ("A", "B", "C", "D") else None


def _human_eval(row: Row) -> Check | None:
    if not all(isinstance(row.get(key), str) for key in ("prompt", "entry_point", "test")):
        return None
    tests = f"{row['test']}\ncheck({row['entry_point']})\n"
    return Check("code", tests=tests, begun=row["prompt"], entry=row["entry_point"])


def _mbpp_tests(row: Row) -> Check | None:
    if not row.get("test_list"):
        return None
    before = row.get("test_imports") or [row.get("test_setup_code") or ""]
    return Check("code", tests="\n".join([*before, *row["test_list"]]))


def _stdin_tests(row: Row) -> Check | None:
    """LiveCodeBench's public examples of programs that read stdin; the others need its own harness."""
    try:
        cases = json.loads(row.get("public_test_cases") or "[]")
        pairs = [(case["input"], case["output"]) for case in cases if case["testtype"] == "stdin"]
    except (ValueError, KeyError, TypeError):
        return None
    return Check("code", tests=STDIN_TESTS.format(pairs=pairs)) if pairs and len(pairs) == len(cases) else None


STDIN_TESTS = """
import contextlib, io, sys
for given, wanted in {pairs!r}:
    sys.stdin, said = io.StringIO(given), io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(PROGRAM, "answer", "exec"), {{"__name__": "__main__"}})
    assert said.getvalue().split() == wanted.split()
"""
"""Runs the answer, which the sandbox keeps as ``PROGRAM``, on every example."""

CHECKS: dict[str, Callable[[Row], Check | None]] = {
    "gsm8k": _number,
    "math500": _math,
    "ceval": _choice,
    "cmmlu": _choice,
    "humaneval": _human_eval,
    "mbpp": _mbpp_tests,
    "livecodebench": _stdin_tests,
}
