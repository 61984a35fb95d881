"""examples/picture.py, which makes the README's picture."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

from eagle3cli.settings.load import load
from eagle3cli.settings.packaged import find_recipe
from tests.conftest import ROOT

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
