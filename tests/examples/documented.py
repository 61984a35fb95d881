"""What the pages for people say, as tests read it: the commands, and whether the program takes them."""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
from pathlib import Path

import pytest

from eagle3cli.cli import main as cli
from eagle3cli.cli.command import Command
from eagle3cli.cli.options import fields_of
from eagle3cli.settings.tables import Settings
from tests.conftest import ROOT, RunCli

PAGES = sorted([ROOT / "README.md", *(ROOT / "examples").glob("*.md"), ROOT / ".github" / "CONTRIBUTING.md"])
MODULES = {line.name: line.module for line in cli.TABLE}
COMMON = {"--config", "--set", "--json", "--debug", "--help", "--version", "--dry-run"}


def lines_of(page: Path, *programs: str) -> list[str]:
    """The command lines of a page's indented blocks, without their comments and with continued lines joined."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    found = re.findall(rf"^ {{4}}((?:{'|'.join(programs)})\b.*)$", text, re.MULTILINE)
    return [re.sub(r"\s+#.*$", "", line).strip() for line in found]


def command(name: str) -> Command | None:
    """The command of that name; None for one that has subcommands of its own (``config``)."""
    found = getattr(importlib.import_module(MODULES[name]), "COMMAND", None)
    assert found is None or isinstance(found, Command)
    return found


def flags_of(name: str) -> set[str]:
    """Every flag that ``eagle3 NAME`` takes."""
    one = command(name)
    assert one is not None, name
    flags, arguments = fields_of(one)
    return COMMON | {flag for field in (*flags, *arguments) for flag in field.flags}


def parsed(line: str, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, cwd: Path) -> None:
    """Assert that the program takes an ``eagle3`` line; what it would do is left out."""
    _, name, *words = shlex.split(line)
    assert name in MODULES, f"no such command: {line}"
    one = command(name)
    assert one is not None, f"{name} has subcommands, which are run, not parsed: {line}"
    got: list[Settings] = []

    def run(settings: Settings, out: object) -> None:
        got.append(settings)

    actions = tuple(dataclasses.replace(action, run=run) for action in one.actions)
    with monkeypatch.context() as patch:
        module = importlib.import_module(MODULES[name])
        patch.setattr(module, "COMMAND", dataclasses.replace(one, run=run, actions=actions))
        ran = run_cli(name, *words, cwd=cwd)
    assert (ran.code, len(got)) == (0, 1), f"{line}\n{ran.err}"
