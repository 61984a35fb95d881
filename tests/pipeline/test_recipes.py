"""Every packaged recipe: it names only what exists, its figures follow from the sizes, and a shrunken one runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from eagle3cli.cli.command import Command
from eagle3cli.cli.worker import WorkerOut
from eagle3cli.console.out import Out
from eagle3cli.data.chat.named import NAMED
from eagle3cli.data.sources.dataset_specs import split_weight
from eagle3cli.data.sources.presets import PRESETS
from eagle3cli.models.packaged import packaged_configs
from eagle3cli.pipeline.stages import StageOut, evaluate, stages, with_default_paths
from eagle3cli.serving.bench.configs import parse_config
from eagle3cli.serving.bench.tasks import NAMES as BENCHMARKS
from eagle3cli.settings.load import load
from eagle3cli.settings.packaged import recipes, summary
from eagle3cli.settings.tables import Settings

FOR_GPUS = sorted(set(recipes()) - {"quickstart"})


@pytest.mark.parametrize("path", recipes().values(), ids=recipes())
def test_a_recipe_is_valid_and_stays_in_its_folder(path: Path) -> None:
    settings = with_default_paths(load([path]).settings)
    folder = settings.run.output_dir
    assert folder == Path("runs") / path.stem
    for stage in stages(settings):
        assert folder in (stage.output(settings), *stage.output(settings).parents)
    assert ("hidden-states" in [stage.name for stage in stages(settings)]) == (settings.train.mode == "offline")
    anew = load([path], ["run.regenerate=true"]).settings
    assert with_default_paths(anew).regenerate.recorded is None


@pytest.mark.parametrize("path", recipes().values(), ids=recipes())
def test_all_that_a_recipe_names_exists(path: Path) -> None:
    settings = load([path]).settings
    assert {split_weight(source)[0] for source in settings.prepare.source} <= set(PRESETS)
    assert settings.draft.config in ("auto", *packaged_configs())
    assert settings.data.chat_template in ("auto", *NAMED)
    assert {task.partition(":")[0] for task in settings.bench.benchmark_list} <= set(BENCHMARKS)
    for config in settings.bench.config_list:
        parse_config(config)
    assert f"eagle3 run {path.stem}: " in path.read_text(encoding="utf-8").splitlines()[0]
    assert len(summary(path)) > 20


@pytest.mark.parametrize("name", FOR_GPUS)
def test_the_sizes_in_the_comments_follow_from_the_draft_config(name: str) -> None:
    text = " ".join(line.lstrip("# ") for line in recipes()[name].read_text(encoding="utf-8").splitlines())
    config = json.loads(packaged_configs()[load([recipes()[name]]).settings.draft.config].read_text(encoding="utf-8"))
    hidden, inner, head = config["hidden_size"], config["intermediate_size"], config["head_dim"]
    queries, keys = head * config["num_attention_heads"], head * config["num_key_value_heads"]
    attention = 2 * hidden * (queries + 2 * keys) + queries * hidden
    parameters = 3 * hidden * (hidden + inner) + attention + config["draft_vocab_size"] * hidden
    told = {int(millions) for millions in re.findall(r"(\d+) M x", text)}
    assert told == {round(parameters / 1e6)}
    rows, tokens, epochs, target, flop = re.findall(
        r"training: ([\d,]+) rows x ([\d,]+) tokens \(e\) x (\d+) epochs x (?:\(2 x ([\d.]+) B)?.*?= ([\d.]+e\d+) flop",
        text,
    )[0]
    work = 2 * float(target or 0) * 1e9 + 6 * parameters * 7
    count = int(rows.replace(",", "")) * int(tokens.replace(",", "")) * int(epochs)
    assert count * work == pytest.approx(float(flop), rel=0.02)
    settings = load([recipes()[name]]).settings
    assert int(rows.replace(",", "")) == settings.prepare.sample_size
    assert (int(epochs), settings.train.ttt_length) == (settings.train.num_epochs, 7)


@pytest.mark.parametrize("name", FOR_GPUS)
def test_a_step_fills_eight_gpus(name: str) -> None:
    """At least 8k tokens for each, at the rows' mean length that the comments assume, in one pass of the draft."""
    text = recipes()[name].read_text(encoding="utf-8")
    train = load([recipes()[name]]).settings.train
    mean = int(re.findall(r"rows x ([\d,]+) tokens \(e\)", text)[0].replace(",", ""))
    tokens = train.batch_size * mean // 8
    assert tokens >= 8192
    assert train.max_tokens_per_gpu is not None
    assert 1.2 * tokens <= train.max_tokens_per_gpu
    assert f"{train.batch_size} x {mean:,} tokens (e) are {tokens:,} a step" in text


def test_the_eval_stage_of_a_spread_target_gets_its_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def in_processes(command: Command, settings: Settings, out: Out) -> bool:
        asked.append((command.name, settings.launch.gpus))
        return True

    monkeypatch.setattr("eagle3cli.cli.worker.in_processes", in_processes)
    evaluate(load([recipes()["qwen3-30b-a3b"]]).settings, StageOut())
    assert asked == [("eval", "2")]


def test_processes_of_a_stage_leave_stdout_to_the_one_that_started_them(capsys: pytest.CaptureFixture[str]) -> None:
    WorkerOut().table("Acceptance", ("k", "length"), [(1, 1.5)])
    assert capsys.readouterr().out == ""
