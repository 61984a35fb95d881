"""Whether answers are right: numbers, mathematical expressions, choices; code by running its tests in a sandbox."""

from __future__ import annotations

import re
from fractions import Fraction

from eagle3cli.serving.bench.benchmarks import Check
from eagle3cli.serving.bench.sandbox.run import passes
from eagle3cli.serving.reasoning import without_reasoning

NUMBER = re.compile(r"-?\$?\d[\d,]*(?:\.\d+)?")


def is_right(answer: str, check: Check, *, run_code: bool) -> bool | None:
    """Whether an answer is right; None where only running it would tell and that is not wanted."""
    text = without_reasoning(answer)
    if check.kind == "number":
        number = last_number(text)
        return number is not None and _value(number) == _value(check.expected)
    if check.kind == "math":
        expression = boxed(text)
        if expression is None:
            expression = last_number(text)
        return expression is not None and _is_equal(expression, check.expected)
    if check.kind == "choice":
        return choice(text) == check.expected
    return passes(program(text, check), code_in(text)) if run_code else None


def last_number(text: str) -> str | None:
    """The final number of an answer: behind ``####``, in a box, first behind "answer is", else the last one."""
    for marked in (text.rpartition("####")[2] if "####" in text else "", boxed(text) or ""):
        if numbers := NUMBER.findall(marked):
            return _plain(numbers[-1])
    announced = list(re.finditer(r"answer is:?|answer:", text, re.IGNORECASE))
    if announced and (first := NUMBER.search(text, announced[-1].end())):
        return _plain(first[0])
    numbers = NUMBER.findall(text)
    return _plain(numbers[-1]) if numbers else None


def boxed(text: str) -> str | None:
    """What the last ``\\boxed{}`` holds, braces inside it included."""
    at = text.rfind("\\boxed{")
    if at < 0:
        return None
    start = at + len("\\boxed{")
    depth = 1
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return text[start:place]
    return text[start:]


def choice(text: str) -> str | None:
    """The letter that was chosen: the one that is called the answer, else a lone one at the start or the end."""
    letter = r"[*(\[「『【《\s]*([A-D])(?![A-Za-z])"
    named = re.findall(rf"(?:答案|选择?|[Aa]nswer)\s*(?:应?为|是|is|选)?\s*[::]?{letter}", text)
    if named:
        return str(named[-1])
    if letters := re.findall(r"[A-D]", boxed(text) or ""):
        return str(letters[-1])
    lone = re.match(r"\s*([A-D])(?![A-Za-z])", text) or re.search(r"(?<![A-Za-z])([A-D])\W*$", text)
    return lone[1] if lone else None


def code_in(text: str) -> str:
    """The code of an answer: its fenced blocks, or all of it."""
    blocks = re.findall(r"```(?:python|py)?[^\S\n]*\n(.*?)(?:```|$)", text, re.DOTALL | re.IGNORECASE)
    return "\n".join(blocks) if blocks else text


def program(answer: str, check: Check) -> str:
    """The answer with what it goes on from before it, and its tests behind it."""
    code = code_in(answer)
    if not check.prefix:
        return check.tests if "PROGRAM" in check.tests else f"{code}\n{check.tests}"
    if not re.search(rf"def\s+{re.escape(check.entry)}\b", code):
        first = next((line for line in code.splitlines() if line.strip()), "")
        if first and not first[0].isspace():  # a body whose first line lost its indentation
            code = "    " + code.lstrip()
    # The prefix alone is a function with a docstring; an answer that defines it anew has its helpers at hand.
    return f"{check.prefix.rstrip()}\n{code}\n{check.tests}"


def _plain(number: str) -> str:
    return number.replace(",", "").replace("$", "")


def _value(text: str) -> Fraction | None:
    try:
        return Fraction(_plain(text))
    except (ValueError, ZeroDivisionError):
        return None


def _is_equal(one: str, other: str) -> bool:
    one = _normal(one)
    other = _normal(other)
    if one == other:
        return True
    values = [_value(re.sub(r"^(-?)\\frac\{(-?\d+)\}\{(\d+)\}$", r"\1\2/\3", text)) for text in (one, other)]
    return values[0] is not None and values[0] == values[1]


def _normal(text: str) -> str:
    """An expression without what does not change it: spaces, delimiters' sizes, units, a name before it."""
    text = text.strip().strip("$").rstrip(".")
    text = re.sub(r"\\(?:left|right|!|,|;|:| )", "", text)
    text = re.sub(r"\\[dt]frac", r"\\frac", text)
    text = re.sub(r"\\frac(\d)(\d)", r"\\frac{\1}{\2}", text)
    text = re.sub(r"\\text(?:bf|rm)?\{\s*([^}]*)\}", r"\1", text)
    text = re.sub(r"\^\{?\\circ\}?|\\%|%|\\\$", "", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    return re.sub(r"\s+", "", re.sub(r"^[a-zA-Z]\s*=", "", text))
