"""The example scripts are sound for bash, and every eagle3 command in them parses as typed."""

from __future__ import annotations

import dataclasses
import importlib
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from eagle3cli import cli
from eagle3cli.settings.tables import Settings
from tests.conftest import ROOT, RunCli

SCRIPTS = sorted([*(ROOT / "examples").glob("*.sh"), *(ROOT / "examples").glob("*.sbatch")])
MODULES = {line.name: line.module for line in cli.TABLE}


def commands(script: Path) -> list[list[str]]:
    """The words after ``eagle3`` of every command, with the script's own variables put in."""
    text = script.read_text(encoding="utf-8")
    values = {name: value.strip('"') for name, value in re.findall(r"^([A-Z]+)=(.+)$", text, re.MULTILINE)}
    found = []
    for line in text.splitlines():
        match = re.match(r"(?:eagle3|.* -m eagle3cli) (.+)$", line)
        if match and not line.startswith("#"):
            words = re.sub(r"\$([A-Z]+)", lambda m: values[m[1]], match[1])
            found.append(shlex.split(words))
    return found


CASES = [(script.name, words) for script in SCRIPTS for words in commands(script)]


def test_there_are_scripts() -> None:
    assert {"eight-gpus.sh", "two-nodes.sbatch"} <= {script.name for script in SCRIPTS}
    assert len(CASES) >= 4


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda p: p.name)
def test_bash_reads_them(script: Path) -> None:
    subprocess.run(["bash", "-n", str(script)], check=True)


@pytest.mark.parametrize(("script", "words"), CASES, ids=lambda x: x if isinstance(x, str) else x[0])
def test_commands_parse(
    script: str, words: list[str], run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    module = importlib.import_module(MODULES[words[0]])
    got: list[Settings] = []
    monkeypatch.setattr(module, "COMMAND", dataclasses.replace(module.COMMAND, run=lambda s, out: got.append(s)))
    ran = run_cli(*words)
    assert (ran.code, len(got)) == (0, 1), ran.err
