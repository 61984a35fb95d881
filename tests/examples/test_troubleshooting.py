"""The page of symptoms: every message that it quotes is one that the program writes."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import ROOT, RunCli
from tests.examples.documented import MODULES, flags_of, parsed

TEXT = (ROOT / "examples" / "troubleshooting.md").read_text(encoding="utf-8")
CELLS = [line.strip("|").split(" | ") for line in TEXT.splitlines() if line.startswith("| ")]
MESSAGES = [span for cells in CELLS for span in re.findall(r"`([^`]+)`", cells[0]) if " " in span or "…" in span]
HOLE = "\N{OBJECT REPLACEMENT CHARACTER}"


@cache
def texts() -> tuple[str, ...]:
    """Every text of the program, with a mark for each value that is put in."""

    def found() -> Iterator[str]:
        for path in (ROOT / "eagle3cli").rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    yield node.value
                elif isinstance(node, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else HOLE for part in node.values)
                    yield "".join(map(str, parts))

    return tuple(found())


def written(message: str) -> bool:
    """Whether a text of the program has this message's words, in order and with values only where it has dots.

    Of ``WHAT: …`` the text may be WHAT alone: differences are put behind it (``runtime/provenance.py``).
    """
    if message.endswith(": …") and message.removesuffix(": …") in texts():
        return True
    pattern = re.compile(
        f"[^{HOLE}]*{HOLE}.*".join(re.escape(part) for part in message.strip("…").split("…")), re.DOTALL
    )
    return any(pattern.search(text) for text in texts())


@pytest.mark.slow
def test_there_are_messages() -> None:
    assert len(MESSAGES) > 40
    assert not written("no such message anywhere")
    assert not written("cannot be found on the hub or in its store (…)")


@pytest.mark.parametrize("message", MESSAGES)
def test_the_program_writes_it(message: str) -> None:
    assert written(message)


def test_every_flag_and_command_that_is_advised_exists() -> None:
    every = {"--install-completion"} | {flag for name in MODULES if name != "config" for flag in flags_of(name)}
    spans = [span for cells in CELLS for span in re.findall(r"`([^`]+)`", cells[1])]
    for span in spans:
        if "pip " in span:
            continue
        flags = re.findall(r"--[a-z][a-z0-9-]+", span)
        assert {re.sub(r"^--no-", "--", flag) for flag in flags} <= every, span
        if span.startswith("eagle3 ") and not span.startswith("eagle3 --"):
            assert span.split()[1] in MODULES, span


COMMANDS = sorted({span for span in re.findall(r"`(eagle3 [^`]+)`", TEXT) if " " in span.removeprefix("eagle3 ")})


@pytest.mark.parametrize("line", [line for line in COMMANDS if not line.startswith("eagle3 config")])
def test_whole_commands_parse(line: str, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    parsed(line, run_cli, monkeypatch, tmp_path)
