"""eagle3 run: all stages from one file, through the command line, also when it is killed on the way."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from eagle3cli.errors import UsageError
from eagle3cli.pipeline import engine, own_replies
from eagle3cli.runtime.files import locked
from eagle3cli.settings.packaged import recipes
from eagle3cli.settings.training import STAGE_NAMES
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
threads = 1
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
    entries: dict[str, Any] = json.loads((folder / "runs" / "tiny" / "stages.json").read_text())["stages"]
    return entries


def test_the_chain_ends_in_a_report_and_is_not_run_twice(run_cli: RunCli, recipe: Path, tmp_path: Path) -> None:
    done = run_cli("run", recipe)
    assert done.code == 0, done.err
    folder = tmp_path / "runs" / "tiny"
    report = json.loads((folder / "report.json").read_text())
    assert list(report["stages"]) == STAGES
    assert (report["k"], report["prompts"], report["lossless"]) == (2, 4, True)
    assert report["draft"] == "runs/tiny/draft"
    assert report["acceptance_length"] >= 1.0
    assert set(report["simulated_acceptance"]) >= {"1", "2"}
    assert report["acceptance_by_walk"] == report["simulated_acceptance"]
    assert set(report["tokens_per_s"]) == {"0", "1", "2"}
    page = (folder / "report.html").read_text()
    assert page.count("<svg") == 2 + 13
    assert "Masks of samples" in page
    assert "Acceptance length" in (folder / "report.md").read_text()
    assert "Acceptance by k" in done.out
    before = (folder / "stages.json").read_text()
    again = run_cli("run", recipe, "--json")
    assert again.json["acceptance_length"] == report["acceptance_length"]
    assert again.err.count("done earlier") == len(STAGES)
    assert (folder / "stages.json").read_text() == before


@pytest.mark.slow
def test_a_target_without_recorded_replies_writes_as_many_as_there_is_time_for(
    run_cli: RunCli, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = tmp_path / "recorded.jsonl"
    recorded.write_text(json.dumps({"target": "another", "max_tokens": 12, "temperature": 0}) + "\n")
    some = ("--set", f"regenerate.recorded={recorded}", "--to", "prepare")
    monkeypatch.setattr(own_replies, "UNTIMED_ROWS", 16)

    def prepared(folder: str, *more: str) -> tuple[str, int]:
        done = run_cli("run", recipe, *some, "--output-dir", folder, *more)
        assert done.code == 0, done.err
        return done.err, len((tmp_path / folder / "prompts" / "train.jsonl").read_text().splitlines())

    told, rows = prepared("untimed")
    assert ("writes its own, to 16 prompts (" in told, rows) == (True, 16), told
    told, rows = prepared("slow", "--time-budget", "0.001s")
    assert ("writes its own, to 12 prompts, about " in told, rows) == (True, 12), told
    monkeypatch.setattr(own_replies, "_row_seconds", lambda settings, report: 0.5)
    planned = run_cli("run", recipe, *some, "--output-dir", "timed", "--time-budget", "10s", "--dry-run")
    assert "the target writes its own replies" in planned.out
    told, rows = prepared("timed", "--time-budget", "10s")
    assert ("to 20 prompts, about 10 s here" in told, rows) == (True, 20), told
    assert prepared("timed", "--time-budget", "10s", "--regenerate", "--overwrite")[1] == 24


@pytest.mark.slow
def test_a_target_without_a_chat_template_is_told_first(run_cli: RunCli, recipe: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tomllib.loads(recipe.read_text())["target"]["model_path"], base)
    (base / "chat_template.jinja").unlink()
    refused = run_cli("run", recipe, "--target-model-path", base)
    assert refused.code != 0
    assert refused.error == "unknown-template"
    assert not (tmp_path / "runs").exists()
    assert run_cli("run", recipe, "--target-model-path", base, "--chat-template", "chatml", "--to", "prepare").code == 0


@pytest.mark.slow
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


@pytest.mark.slow
def test_more_steps_and_other_measurements_go_on_and_delete_nothing(
    run_cli: RunCli, recipe: Path, tmp_path: Path
) -> None:
    assert run_cli("run", recipe).code == 0
    folder = tmp_path / "runs" / "tiny"
    measured = (folder / "bench" / "results.jsonl").read_bytes()
    states_before = digest(folder / "train" / "checkpoints" / "epoch_1_step_8" / "model.safetensors")
    more = ("--set", "train.total_steps=12", "--set", "train.eval_interval=6", "--set", "bench.max_tokens=4")
    planned = run_cli("run", recipe, *more, "--dry-run", "--json")
    assert planned.json["stages_left"] == ["train", "eval", "export", "bench"]
    done = run_cli("run", recipe, *more, "--json")
    assert done.code == 0, done.err
    assert done.json["steps"] == 12
    assert "going on from epoch_1_step_8" in done.err
    assert done.err.count("done earlier") == STAGES.index("train")
    assert (folder / "bench.1" / "results.jsonl").read_bytes() == measured
    assert digest(folder / "train" / "checkpoints" / "epoch_1_step_8" / "model.safetensors") == states_before
    deeper = run_cli("run", recipe, *more, "--set", "eval.depths=4")
    assert deeper.code == 0, deeper.err
    assert deeper.err.count("done earlier") == STAGES.index("train") + 1
    assert (folder / "bench.2").is_dir()
    assert run_cli("run", recipe, *more, "--set", "eval.depths=4").err.count("done earlier") == len(STAGES)


@pytest.mark.parametrize("words", [("--set", "prepare.source=absent.jsonl"), ("--target-model-path", "./nowhere")])
def test_a_refused_run_leaves_no_folder(run_cli: RunCli, recipe: Path, tmp_path: Path, words: tuple[str, ...]) -> None:
    assert run_cli("run", recipe, *words).code in (1, 2)
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_offline_training_captures_the_states_first(run_cli: RunCli, recipe: Path, tiny: Path, tmp_path: Path) -> None:
    recipe.write_text(RECIPE.format(tiny=tiny, mode="offline"))
    assert run_cli("run", recipe).code == 0
    assert list(states(tmp_path)) == [*STAGES[:5], "hidden-states", *STAGES[5:]]


def part_lines(folder: Path) -> int:
    lines = 0
    for path in (folder / "regenerated").glob(".part_*"):
        with suppress(FileNotFoundError):  # its shard is finished
            lines += path.read_bytes().count(b"\n")
    return lines


@pytest.mark.slow
def test_a_killed_run_goes_on_and_gives_the_same_draft(run_cli: RunCli, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    (tmp_path / "whole" / "in.jsonl").write_text((tmp_path / "in.jsonl").read_text())
    assert run_cli("run", recipe, cwd=tmp_path / "whole").code == 0
    folder = tmp_path / "runs" / "tiny"
    for reached in (lambda: part_lines(folder) >= 3, lambda: any((folder / "train").glob("checkpoints/*/config.json"))):
        kill_when(reached, recipe, tmp_path)
    assert run_cli("run", recipe).code == 0
    expected = tmp_path / "whole" / "runs" / "tiny"
    for name in ("draft/model.safetensors", "regenerated/shard_0-24.jsonl", "dataset/train.jsonl"):
        assert digest(folder / name) == digest(expected / name), name
    reports = [json.loads((place / "report.json").read_text()) for place in (folder, expected)]
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


@pytest.mark.slow
def test_a_folder_that_another_run_is_in(
    run_cli: RunCli, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "runs" / "tiny"
    folder.mkdir(parents=True)
    monkeypatch.setattr(engine, "PATIENCE", 0.0)
    with locked(folder, UsageError("locked", "taken")):
        done = run_cli("run", recipe, "--to", "prepare")
        assert done.code == 2, done.err
        assert done.error == "locked"
        assert not any(folder.iterdir())
    assert run_cli("run", recipe, "--to", "prepare").code == 0


def test_a_folder_of_something_else_is_left_alone(run_cli: RunCli, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    done = run_cli("run", recipe, "--output-dir", "mine", "--overwrite")
    assert (done.code, done.error == "foreign-files") == (2, True)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "dear"


@pytest.mark.slow
def test_a_mistyped_target_is_told_first_and_may_be_corrected(run_cli: RunCli, recipe: Path, tmp_path: Path) -> None:
    wrong = run_cli("run", recipe, "--target-model-path", "./nowhere")
    assert (wrong.code, "no such folder" in wrong.err) == (1, True), wrong.err
    assert not (tmp_path / "runs").exists()
    right = run_cli("run", recipe, "--sample-size", "12")
    assert right.code == 0, right.err


def test_an_unknown_recipe_is_told(run_cli: RunCli) -> None:
    done = run_cli("run", "quickstrat")
    assert (done.code, done.error == "no-such-path") == (2, True)


@pytest.mark.slow
def test_single_stages_and_stretches_of_the_chain(run_cli: RunCli, recipe: Path, tmp_path: Path) -> None:
    early = run_cli("run", recipe, "--only", "train")
    assert early.code == 2
    assert "--only: stage train needs stage target, which was not run" in early.err
    assert "the same command with --to cache in place of --only train" in early.err
    first = run_cli("run", recipe, "--to", "cache", "--json")
    assert first.code == 0, first.err
    assert list(first.json["stages"]) == STAGES[:5]
    assert first.json["left"] == STAGES[5:]
    assert not (tmp_path / "runs" / "tiny" / "train").exists()
    alone = run_cli("run", recipe, "--only", "train")
    assert alone.code == 0, alone.err
    assert "left: eval, export, bench" in alone.out
    skipping = run_cli("run", recipe, "--only", "export", "--json")  # what eval measures is read by nobody
    assert skipping.json["left"] == ["eval", "bench"]
    whole = run_cli("run", recipe, "--json")
    assert whole.json["steps"] == 8
    assert whole.err.count("done earlier") == 7
    kept = (tmp_path / "runs" / "tiny" / "settings.toml").read_text()
    assert "# only_stage is not set" in kept


@pytest.mark.slow
def test_from_redoes_a_stage_and_those_after_it_once(
    run_cli: RunCli, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run_cli("run", recipe).code == 0
    folder = tmp_path / "runs" / "tiny"
    for name in ("cache", "train"):
        (folder / name / "first").touch()
    draft = digest(folder / "draft" / "model.safetensors")
    with monkeypatch.context() as patch:  # interrupted after train, before export
        from eagle3cli.commands import eval as module

        def stop(settings: Any, out: Any) -> None:
            raise KeyboardInterrupt

        patch.setattr(module, "COMMAND", dataclasses.replace(module.COMMAND, run=stop))
        assert run_cli("run", recipe, "--from", "train").code == 130
    assert not (folder / "draft").exists()
    assert not (folder / "train" / "first").exists()
    assert not (folder / "report.json").exists()
    (folder / "train" / "second").touch()
    done = run_cli("run", recipe, "--from", "train")
    assert done.code == 0, done.err
    assert (folder / "train" / "second").exists(), "the interrupted redoing goes on"
    assert (folder / "cache" / "first").exists()
    assert digest(folder / "draft" / "model.safetensors") == draft
    assert list(states(tmp_path)) == STAGES
    again = run_cli("run", recipe, "--from", "bench")
    assert again.err.count("done earlier") == len(STAGES) - 1


@pytest.mark.slow
def test_from_deletes_nothing_where_a_stage_writes_outside(run_cli: RunCli, recipe: Path, tmp_path: Path) -> None:
    outside = ("--set", "export.output_path=elsewhere")
    assert run_cli("run", recipe, *outside).code == 0
    refused = run_cli("run", recipe, *outside, "--from", "train")
    assert (refused.code, "elsewhere is outside of the run's folder" in refused.err) == (2, True), refused.err
    assert list(states(tmp_path)) == STAGES
    assert (tmp_path / "runs" / "tiny" / "train").is_dir()


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("--from", "trian"), "did you mean train?"),
        (("--only", "hidden-states"), "no stage hidden-states where train.mode is online"),
        (("--from", "bench", "--to", "train"), "run.from_stage bench comes after run.to_stage train"),
        (("--only", "train", "--to", "bench"), "run.only_stage stands alone; leave out run.to_stage"),
    ],
)
def test_stages_that_cannot_be_meant(words: tuple[str, ...], part: str, run_cli: RunCli, recipe: Path) -> None:
    done = run_cli("run", recipe, *words)
    assert (done.code, part in done.err) == (2, True), done.err


def test_the_list_shows_recipes_and_stages(run_cli: RunCli) -> None:
    shown = run_cli("run", "--list")
    assert shown.code == 0
    listed = run_cli("run", "--list", "--json").json
    assert list(listed["recipes"]) == list(recipes())
    assert tuple(listed["stages"]) == STAGE_NAMES
    assert all(text in shown.out for text in (*listed["recipes"].values(), *listed["stages"].values()))


def test_without_a_recipe_the_way_to_one_is_told(run_cli: RunCli) -> None:
    done = run_cli("run")
    assert (done.code, done.error == "missing-target" and "eagle3" in done.err and "--list" in done.err) == (2, True)
