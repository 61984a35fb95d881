"""Which folder of a run is the draft."""

from __future__ import annotations

from pathlib import Path

import pytest

from eagle3cli.models.folders import find_draft
from tests.failing import fails


def draft(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def test_a_folder_itself_then_the_best_then_the_newest_checkpoint(tmp_path: Path) -> None:
    newest = draft(tmp_path / "checkpoints" / "epoch_1_step_100")
    draft(tmp_path / "checkpoints" / "epoch_2_step_20")
    draft(tmp_path / "checkpoints" / "epoch_0_step_3")
    (tmp_path / "checkpoints" / "epoch_9_step_new").mkdir()
    assert find_draft(tmp_path) == newest
    best = draft(tmp_path / "best")
    assert find_draft(tmp_path) == best
    assert find_draft(newest) == newest


@pytest.mark.parametrize("name", ["", "elsewhere"])
def test_no_draft_is_an_error_that_names_the_place(tmp_path: Path, name: str) -> None:
    with fails("draft-format", tmp_path / name):
        find_draft(tmp_path / name)
