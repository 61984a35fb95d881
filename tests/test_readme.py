"""The README's commands parse as typed, its make targets exist, and the example settings files are sound."""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
import shutil
from pathlib import Path

import pytest

from eagle3cli import cli
from eagle3cli.settings.tables import Settings
from tests.conftest import ROOT, RunCli

README = (ROOT / "README.md").read_text(encoding="utf-8")
LINES = re.findall(r"^ {4}(eagle3 [^#\n]+|make [^#\n]+)", README, re.MULTILINE)
COMMANDS = sorted(
    {line.strip() for line in LINES if line.startswith("eagle3 ") and not line.startswith("eagle3 config")}
)
MODULES = {line.name: line.module for line in cli.TABLE}


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line: str, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for example in (ROOT / "examples").glob("*.toml"):
        shutil.copy(example, tmp_path / example.name)
    _, name, *words = shlex.split(line)
    module = importlib.import_module(MODULES[name])
    got: list[Settings] = []
    monkeypatch.setattr(module, "COMMAND", dataclasses.replace(module.COMMAND, run=lambda s, out: got.append(s)))
    ran = run_cli(name, *words)
    assert (ran.code, len(got)) == (0, 1), ran.err


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 8


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for line in LINES:
        if line.startswith("make "):
            assert re.search(rf"^{line.split()[1]}:", makefile, re.MULTILINE), line


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda p: p.stem)
def test_example_settings_are_sound(path: Path, run_cli: RunCli) -> None:
    ran = run_cli("config", "check", path)
    assert ran.code == 0, ran.err
