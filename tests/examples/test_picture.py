"""examples/picture.py and examples/screenshot.py, which make the README's pictures."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from eagle3cli.runs.session import write_report
from eagle3cli.runtime.report import Silent
from eagle3cli.settings.load import load
from eagle3cli.settings.packaged import find_recipe
from tests.conftest import ROOT
from tests.runs.made import make_run

SHOW = "import os, sys; print('\\x1b[32mgreen words\\x1b[0m', sys.stdout.isatty(), 'NO_COLOR' in os.environ)"


def draw(path: Path, *command: str) -> int:
    words = [sys.executable, str(ROOT / "examples" / "picture.py"), str(path), *command]
    return subprocess.run(words, capture_output=True, check=False).returncode


def test_a_command_is_drawn_as_a_terminal_shows_it(tmp_path: Path) -> None:
    path = tmp_path / "picture.svg"
    assert draw(path, sys.executable, "-c", SHOW) == 0
    drawn = " ".join(ElementTree.parse(path).getroot().itertext()).replace("\u00a0", " ")
    assert "green words" in drawn
    assert "True False" in drawn
    assert "url(" not in path.read_text().replace("url(#", "")


def test_a_command_that_fails_leaves_no_picture(tmp_path: Path) -> None:
    assert draw(tmp_path / "picture.svg", sys.executable, "-c", "import sys; sys.exit(3)") == 1
    assert not list(tmp_path.iterdir())


def test_the_readmes_picture_shows_its_own_rows() -> None:
    drawn = (ROOT / "examples" / "view-train-data.svg").read_text(encoding="utf-8").replace("&#160;", " ")
    settings = load([find_recipe(str(ROOT / "examples" / "view-train-data.toml"))], (), {}).settings
    assert settings.data.train_path == Path("examples/conversations.jsonl")
    assert "eagle3 view-train-data 1 2 --config examples/view-train-data.toml" in drawn
    assert "(id tea, line 1)" in drawn
    assert "unknown to the draft" in drawn


def test_a_report_is_pictured_for_a_desk_and_a_phone(tmp_path: Path) -> None:
    if not any(map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))):
        pytest.skip("no chromium here")
    run = make_run(tmp_path / "run")
    write_report(run, Silent())
    pictures = [tmp_path / "desk.png", tmp_path / "phone.png"]
    words = [sys.executable, str(ROOT / "examples" / "screenshot.py"), str(run / "report.html"), *map(str, pictures)]
    subprocess.run(words, check=True, capture_output=True)
    sizes = [tuple(int.from_bytes(path.read_bytes()[at : at + 4], "big") for at in (16, 20)) for path in pictures]
    assert sizes == [(1160, 880), (360, 900)]


@pytest.mark.parametrize("name", ["report.png", "report-phone.png"])
def test_the_readmes_screenshots_are_small(name: str) -> None:
    data = (ROOT / "examples" / name).read_bytes()
    assert data.startswith(b"\x89PNG")
    assert len(data) < 150_000
