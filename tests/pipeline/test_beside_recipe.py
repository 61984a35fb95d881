"""What an eagle3.toml that happens to lie there does to ``eagle3 run RECIPE``: nothing unsaid, and no path."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conftest import RunCli

RECIPE = '[target]\nmodel_path = "{tiny}"\n[prepare]\nsource = "in.jsonl"\n[train]\nbatch_size = 8\n'
MINE = """
[target]
model_path = "models/mine"
[prepare]
output_path = "cache/prompts"
source = "somebody.jsonl"
[data]
train_path = "somebody.jsonl"
cache_dir = "cache"
system_prompt = "@rules.txt"
[train]
batch_size = 2
loss = "tv"
[draft]
config = "./draft.json"
[bench]
benchmark_list = ["mtbench:4"]
"""
PATHS = ("prepare.output_path", "data.train_path", "data.cache_dir", "data.system_prompt", "draft.config")


@pytest.fixture
def place(tmp_path: Path, tiny: Path) -> Path:
    row = '{"id": "a", "conversations": [{"role": "user", "content": "How?"}]}\n'
    for name in ("in.jsonl", "somebody.jsonl"):
        (tmp_path / name).write_text(row)
    (tmp_path / "rules.txt").write_text("Be short.")
    (tmp_path / "eagle3.toml").write_text(MINE)
    (tmp_path / "mine.toml").write_text(RECIPE.format(tiny=tiny))
    return tmp_path


@pytest.mark.parametrize("words", [("run", "mine.toml", "--dry-run"), ("plan", "mine.toml")])
def test_values_are_told_and_paths_are_left(place: Path, run_cli: RunCli, words: tuple[str, ...]) -> None:
    ran = run_cli(*words)
    assert ran.code == 0, ran.err
    taken, left = (line for line in ran.err.splitlines() if "taken from eagle3.toml" in line)
    assert 'train.loss = "tv" (eagle3.toml:13)' in taken
    assert 'bench.benchmark_list = ["mtbench:4"] (eagle3.toml:17)' in taken
    assert "batch_size" not in taken + left  # the recipe says it
    assert all(f"{path} (eagle3.toml:" in left and path not in taken for path in PATHS)
    assert "prepare.source" not in taken + left
    assert "cache/prompts" not in ran.out
    assert "runs/mine/prompts" in ran.out


def test_without_that_file_nothing_is_said(place: Path, run_cli: RunCli) -> None:
    (place / "eagle3.toml").unlink()
    assert "eagle3.toml" not in run_cli("run", "mine.toml", "--dry-run").err


def test_the_file_itself_is_a_recipe_like_any_other(place: Path, run_cli: RunCli, tiny: Path) -> None:
    text = MINE.replace("models/mine", str(tiny)).replace('config = "./draft.json"', 'config = "auto"')
    (place / "eagle3.toml").write_text(text)
    ran = run_cli("run", "eagle3.toml", "--dry-run")
    assert ran.code == 0, ran.err
    assert "taken from" not in ran.err
    assert "cache/prompts: train.jsonl" in ran.out


def test_a_target_of_that_file_that_is_a_folder_is_missed_by_name(place: Path, run_cli: RunCli) -> None:
    (place / "mine.toml").write_text("[train]\nbatch_size = 8\n")
    (place / "models" / "mine").mkdir(parents=True)
    ran = run_cli("run", "mine.toml")
    assert ran.code == 2
    assert "target.model_path (eagle3.toml:3)" in ran.err
    assert ran.error == "missing-target"
