"""Right and wrong answers of every kind, and code that runs in the sandbox and nowhere else."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from eagle3cli.data.sources.lines import read_jsonl
from eagle3cli.serving.bench.accuracy import boxed, choice, is_right, last_number, program
from eagle3cli.serving.bench.benchmarks import Check
from eagle3cli.serving.bench.questions import question_of
from eagle3cli.serving.bench.sandbox.run import passes


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("so 3 + 4 = 7 apples", "7"),
        ("#### 1,234", "1234"),
        (r"The answer is \boxed{42}. It took 3 steps.", "42"),
        ("The answer is $18 for 9 eggs.", "18"),
        ("It is -2.50", "-2.50"),
        ("no idea", None),
        ("The answer is: see above, 12", "12"),
    ],
)
def test_final_numbers(reply: str, number: str | None) -> None:
    assert last_number(reply) == number


@pytest.mark.parametrize(
    ("reply", "expected", "right"),
    [
        (r"\boxed{\dfrac{1}{2}}", r"\frac{1}{2}", True),
        (r"\boxed{0.5}", r"\frac12", True),
        (r"\boxed{x = 3}", "3", True),
        (r"\boxed{\left( 3, \frac{\pi}{2} \right)}", r"\left(3,\frac{\pi}{2}\right)", True),
        (r"\boxed{10\%}", "10", True),
        (r"\boxed{1,000}", "1000", True),
        (r"\boxed{2}", "3", False),
        ("I think 3", "3", True),
        ("<think>it may be \\boxed{4}</think> So \\boxed{3}", "3", True),
    ],
)
def test_mathematics(reply: str, expected: str, right: bool) -> None:
    assert is_right(reply, Check("math", expected), run_code=False) is right


def test_boxes_hold_braces() -> None:
    assert boxed(r"\boxed{\frac{a}{b}} end") == r"\frac{a}{b}"
    assert boxed("none") is None


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("答案:B", "B"),
        ("正确答案是 C。", "C"),
        ("The answer is (D).", "D"),
        ("A. because", "A"),
        ("所以选A", "A"),
        ("?", None),
    ],
)
def test_choices(reply: str, letter: str | None) -> None:
    assert choice(reply) == letter


def test_numbers_are_compared_as_numbers() -> None:
    assert is_right("It is 70,000.00", Check("number", "70000"), run_code=False) is True
    assert is_right("It is 7", Check("number", "70000"), run_code=False) is False


def test_code_does_not_run_unless_asked_for() -> None:
    assert is_right("x = 1", Check("code", tests="assert x == 1"), run_code=False) is None
    assert is_right("```python\nx = 1\n```", Check("code", tests="assert x == 1"), run_code=True) is True
    assert is_right("```python\nx = 2\n```", Check("code", tests="assert x == 1"), run_code=True) is False


COMPLETION = Check(
    "code",
    tests="def check(f):\n    assert f(2) == 4\ncheck(double)\n",
    prefix="def double(x):\n    'twice'\n",
    entry="double",
)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("    return 2 * x", True),
        ("return 2 * x", True),
        ("Here:\n```python\ndef double(x):\n    return 2 * x\n```\nDone.", True),
        ("```\n    return x\n```", False),
        ("it is simple", False),
    ],
)
def test_answers_go_on_with_the_code_or_write_it_anew(answer: str, right: bool) -> None:
    assert is_right(answer, COMPLETION, run_code=True) is right


def test_programs_that_read_stdin() -> None:
    row = {
        "question_content": "Add one.",
        "public_test_cases": '[{"input": "1\\n", "output": "2", "testtype": "stdin"}]',
    }
    check = question_of(row, 1, "livecodebench").check
    assert check is not None
    assert is_right("```python\nprint(int(input()) + 1)\n```", check, run_code=True) is True
    assert is_right("```python\nprint(int(input()) + 2)\n```", check, run_code=True) is False


def test_reference_solutions_pass(shared: Path) -> None:
    for line in list(read_jsonl(shared / "data" / "humaneval.jsonl"))[:6]:
        assert line.value is not None
        check = question_of(line.value, 1, "humaneval").check
        assert check is not None
        assert passes(program(line.value["reference"][0], check)) is True
        assert passes(program("    return None", check)) is False


@pytest.mark.parametrize(
    "harm",
    [
        "import os; os._exit(0)",
        "raise SystemExit(0)",
        "while True: pass",
        "x = bytearray(8 << 30)",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('true')",
        "import os; os.fork()",
        "import socket; socket.create_connection(('127.0.0.1', 9))",
        "open('big', 'wb').write(b'0' * (8 << 20))",
        "import ctypes; ctypes.CDLL(None)",
    ],
)
def test_the_sandbox_stops_what_a_program_must_not_do(harm: str) -> None:
    assert passes(harm, seconds=1.0) is False


def test_the_sandbox_keeps_files_and_secrets_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outside = tmp_path / "kept.txt"
    outside.write_text("here")
    monkeypatch.setenv("HF_TOKEN", "secret")
    for code in (f"open({str(outside)!r}, 'w').write('x')", f"import os; os.remove({str(outside)!r})"):
        assert passes(code) is False
    assert outside.read_text() == "here"
    assert passes("import os; assert 'HF_TOKEN' not in os.environ") is True
    assert passes("open('own.txt', 'w').write('fine')\nprint('noise')") is True
    assert not os.path.exists("own.txt")
