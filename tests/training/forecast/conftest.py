"""A folder to train in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands.train.test_train import SETTINGS, conversations


@pytest.fixture
def place(tmp_path: Path, tiny: Path) -> Path:
    """A folder with data and an eagle3.toml."""
    (tmp_path / "train.jsonl").write_text(conversations(14, 0))
    (tmp_path / "eval.jsonl").write_text(conversations(4, 100))
    (tmp_path / "eagle3.toml").write_text(SETTINGS.format(tiny=tiny))
    return tmp_path
