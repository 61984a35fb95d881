"""eagle3 run: all stages from one file, through the command line, also when it is killed on the way."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eagle3cli.chain.stages import placed, stages
from eagle3cli.settings.load import load
from eagle3cli.settings.packaged import recipes
from tests.conftest import ROOT, RunCli

RECIPE = """
[run]
k = 2
held_out_prompts = 4
new_tokens = 12
speed_prompts = 1
batch_size = 4
[target]
model_path = "{tiny}"
[draft]
vocab_size = 128
[prepare]
source = "in.jsonl"
[regenerate]
max_tokens = 12
batch_size = 4
[merge]
eval_size = 4
[train]
mode = "{mode}"
total_steps = 8
batch_size = 4
learning_rate = 1e-3
ttt_length = 2
log_interval = 2
save_interval = 2
eval_interval = 4
[eval]
depths = 3
[bench]
benchmark_list = ["mtbench-like:2"]
config_list = ["2,2,1,3"]
max_tokens = 8
"""
STAGES = ["target", "prepare", "regenerate", "merge", "cache", "train", "eval", "export", "bench"]


@pytest.fixture
def recipe(tiny: Path, tmp_path: Path) -> Path:
    rows = [{"id": f"p{i}", "conversations": [{"role": "user", "content": f"{i}: How?"}]} for i in range(24)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tiny.toml").write_text(RECIPE.format(tiny=tiny, mode="online"))
    return tmp_path / "tiny.toml"


def states(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "runs" / "tiny" / "stages.json").read_text())["stages"]
    return found


def test_the_chain_ends_in_a_report_and_is_not_run_twice(run_cli: RunCli, recipe: Path, tmp_path: Path) -> None:
    done = run_cli("run", recipe)
    assert done.code == 0, done.err
    folder = tmp_path / "runs" / "tiny"
    report = json.loads((folder / "report.json").read_text())
    assert list(report["stages"]) == STAGES
    assert (report["k"], report["prompts"], report["lossless"]) == (2, 4, True)
    assert report["draft"] == "runs/tiny/draft"
    assert report["acceptance_length"] >= 1.0
    assert set(report["tokens_per_s"]) == {"0", "1", "2"}
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 2 + 12
    assert "Masks of samples" in page
    assert "Acceptance length" in (folder / "report.md").read_text()
    assert "Acceptance by k" in done.out
    before = (folder / "stages.json").read_text()
    again = run_cli("run", recipe, "--json")
    assert again.json["acceptance_length"] == report["acceptance_length"]
    assert again.err.count("done earlier") == len(STAGES)
    assert (folder / "stages.json").read_text() == before


def test_changed_settings_need_overwrite_and_redo_what_follows(run_cli: RunCli, recipe: Path, tmp_path: Path) -> None:
    assert run_cli("run", recipe).code == 0
    changed = ("--set", "train.learning_rate=2e-3", "--set", "bench.max_tokens=4")
    refused = run_cli("run", recipe, *changed)
    assert refused.code == 2
    assert "stage train: made with other settings: train.learning_rate was 0.001, is 0.002" in refused.err
    assert states(tmp_path)["train"]["state"] == "done"
    done = run_cli("run", recipe, *changed, "--overwrite")
    assert done.code == 0, done.err
    assert done.err.count("done earlier") == STAGES.index("train")
    assert run_cli("run", recipe, *changed).err.count("done earlier") == len(STAGES)


def test_offline_training_captures_the_states_first(run_cli: RunCli, recipe: Path, tiny: Path, tmp_path: Path) -> None:
    recipe.write_text(RECIPE.format(tiny=tiny, mode="offline"))
    assert run_cli("run", recipe).code == 0
    assert list(states(tmp_path)) == [*STAGES[:5], "hidden-states", *STAGES[5:]]


def part_lines(folder: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in (folder / "regenerated").glob(".part_*"))


def test_a_killed_run_goes_on_and_gives_the_same_draft(run_cli: RunCli, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "in.jsonl").write_text((tmp_path / "in.jsonl").read_text())
    assert run_cli("run", recipe, cwd=tmp_path / "whole").code == 0
    folder = tmp_path / "runs" / "tiny"
    for reached in (lambda: part_lines(folder) >= 3, lambda: any((folder / "train").glob("checkpoints/*/config.json"))):
        kill_when(reached, recipe, tmp_path)
    assert run_cli("run", recipe).code == 0
    expected, found = tmp_path / "whole" / "runs" / "tiny", folder
    for name in ("draft/model.safetensors", "regenerated/shard_0-24.jsonl", "dataset/train.jsonl"):
        assert digest(found / name) == digest(expected / name), name
    reports = [json.loads((place / "report.json").read_text()) for place in (found, expected)]
    assert reports[0]["acceptance_length"] == reports[1]["acceptance_length"]


def kill_when(reached: Callable[[], bool], recipe: Path, cwd: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "eagle3cli", "run", str(recipe)]
    process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not reached():
        time.sleep(0.005)
    assert process.poll() is None, "the run ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_folder_of_something_else_is_left_alone(run_cli: RunCli, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    done = run_cli("run", recipe, "--output-dir", "mine", "--overwrite")
    assert (done.code, "holds something else than a run" in done.err) == (2, True)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


@pytest.mark.parametrize("path", recipes().values(), ids=recipes())
def test_every_packaged_recipe_is_valid_and_stays_in_its_folder(path: Path) -> None:
    settings = placed(load([path]).settings)
    folder = settings.run.output_dir
    assert folder == Path("runs") / path.stem
    for stage in stages(settings):
        assert folder in (stage.output(settings), *stage.output(settings).parents)
    anew = load([path], ["run.regenerate=true"]).settings
    assert placed(anew).regenerate.recorded is None


def test_a_mistyped_target_is_told_first_and_may_be_corrected(run_cli: RunCli, recipe: Path, tmp_path: Path) -> None:
    wrong = run_cli("run", recipe, "--target-model-path", "./nowhere")
    assert (wrong.code, "no such folder" in wrong.err) == (1, True), wrong.err
    assert list(states(tmp_path)) == ["target"]
    right = run_cli("run", recipe, "--sample-size", "12")
    assert right.code == 0, right.err


def test_an_unknown_recipe_is_told(run_cli: RunCli) -> None:
    done = run_cli("run", "quickstrat")
    assert (done.code, "did you mean quickstart" in done.err) == (2, True)
