"""The catalogue of errors: every code is raised, has a message and a fix, and a line in the page of symptoms.

This is the one place that looks at wording; other tests assert codes and values (``tests.failing``).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

import pytest

from eagle3cli.errors import FIXES, DataError, Eagle3Error
from tests.conftest import ROOT

KINDS = {"Eagle3Error", "UsageError", "DataError", "ModelError", "LostRankError", "Withheld", "NoImage"}
PAGE = (ROOT / "examples" / "troubleshooting.md").read_text(encoding="utf-8")
LINES = dict(re.findall(r"^\| `([a-z-]+)` \| (.+) \|$", PAGE, re.MULTILINE))


@cache
def raised() -> tuple[tuple[str, ast.Call], ...]:
    """Every place of the package that makes an error: where it is, and the call."""

    def places() -> Iterator[tuple[str, ast.Call]]:
        for path in (ROOT / "eagle3cli").rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in KINDS:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}", node

    return tuple(places())


@pytest.mark.slow
def test_every_place_names_a_code_and_says_something() -> None:
    assert len(raised()) > 100
    for where, call in raised():
        code, message = call.args
        assert not isinstance(code, ast.Constant) or code.value in FIXES, where
        assert not isinstance(message, ast.Constant) or str(message.value).strip(), where


@pytest.mark.parametrize("code", FIXES)
def test_a_code_is_raised_and_explained(code: str) -> None:
    used = {call.args[0].value for _, call in raised() if isinstance(call.args[0], ast.Constant)}
    assert code in used | {"stopped", "out-of-memory"}
    assert FIXES[code].strip()
    meaning, fix = LINES[code].split(" | ")
    assert meaning.strip()
    assert fix.replace("`", "") == FIXES[code]


def test_the_page_lists_no_code_that_is_gone() -> None:
    assert set(LINES) == set(FIXES)


def test_an_error_has_the_fix_of_its_code_unless_it_has_its_own() -> None:
    assert DataError("no-rows", "none").fix == FIXES["no-rows"]
    assert DataError("no-rows", "none", fix="add some").fix == "add some"
    assert str(DataError("no-rows", "none", where="a.jsonl:3", fix="add some")) == "a.jsonl:3: none\nfix: add some"
    with pytest.raises(KeyError):
        Eagle3Error("no-such-code", "nothing")


def _kinds_in(node: ast.expr) -> set[str]:
    return {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}


@pytest.mark.slow
def test_no_other_test_compares_the_sentence_of_an_error() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or ast.unparse(node.func) != "pytest.raises" or not node.args:
                continue
            compares = any(keyword.arg == "match" for keyword in node.keywords)
            assert not (compares and _kinds_in(node.args[0]) & KINDS), f"{path.relative_to(ROOT)}:{node.lineno}"
