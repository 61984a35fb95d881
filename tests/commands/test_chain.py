"""The chain by hand: each command finds what the one before wrote, and each ``next:`` line runs as it is printed."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Ran, RunCli

SMALL = """
[target]
threads = 1
[draft]
vocab_size = 128
[data]
max_length = 256
num_proc = 1
[regenerate]
engine = "local"
max_tokens = 8
[train]
mode = "{mode}"
total_steps = 2
batch_size = 4
ttt_length = 2
[eval]
depths = 2
[bench]
engine = "local"
benchmark_list = ["mtbench-like:2"]
config_list = ["2,2,1,3"]
max_tokens = 8
"""
"""What makes the chain short; nothing of it is a path."""
STEPS = ["prepare", "regenerate", "merge", "cache", "train", "eval", "export", "bench"]
OFFLINE = [*STEPS[:4], "hidden-states", *STEPS[4:]]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    talks = [{"id": f"p{i}", "conversations": [{"role": "user", "content": f"{i}: How?"}]} for i in range(24)]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talks))
    return tmp_path


def next_of(ran: Ran) -> list[str]:
    """The words of the ``next:`` line, behind eagle3; none where there is no such line."""
    assert ran.code == 0, ran.err
    lines = [line.removeprefix("next: ") for line in ran.out.splitlines() if line.startswith("next: ")]
    return shlex.split(lines[0])[1:] if lines else []


def follow(run_cli: RunCli, words: list[str], more: Callable[[str], list[str]] = lambda command: []) -> list[str]:
    """Run a command and each that the one before says is next; returns their names."""
    names = []
    while words:
        names.append(words[0])
        words = next_of(run_cli(*words, *more(words[0])))
    return names


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_next_lines_say_what_was_typed_elsewhere(prompts: Path, tiny: Path, run_cli: RunCli) -> None:
    """No eagle3.toml: the target, a settings file and every place are typed once and carried on from there."""
    (prompts / "small one.toml").write_text(SMALL.format(mode="offline"))
    places = {
        "regenerate": ["--output-dir", "b", "--model-path", str(tiny), "--chat-template", "qwen"],
        "merge": ["--output-dir", "c"],
        "cache": ["--cache-dir", "d", "--draft-vocab-size", "96"],
        "hidden-states": ["--output-path", "e"],
        "train": ["--output-dir", "f", "--set", "bench.benchmark_list=mtbench-like:1"],
        "export": ["--output-path", "g"],
        "bench": ["--output", "h/results.jsonl"],
    }
    begin = ["prepare", "in.jsonl", "--output-path", "a", "--config", "small one.toml"]
    assert follow(run_cli, begin, lambda command: places.get(command, [])) == OFFLINE
    assert {path.name for path in prompts.iterdir() if path.is_dir() and len(path.name) == 1} == set("abcdefgh")
    config = json.loads((prompts / "g" / "config.json").read_text())
    assert config["draft_vocab_size"] == 96  # typed once, where the rows were cached
    summary = json.loads(next((prompts / "d").glob("processed_dataset/*/summary.json")).read_text())
    assert summary["train"]["loss_tokens"]


def test_regenerate_reads_what_prepare_made_or_found_last(prompts: Path, run_cli: RunCli) -> None:
    def taken() -> str:
        ran = run_cli("regenerate", "--dry-run", "--model-path", "nowhere", "--server-address-port", "localhost:1")
        return ran.err.split("--input-path ")[1].split()[0]

    (prompts / "other.jsonl").write_text((prompts / "in.jsonl").read_text())
    for source in ("in", "other", "in"):
        assert run_cli("prepare", f"{source}.jsonl").code == 0
        assert taken() == f"cache/dataset/{source}/train.jsonl"


def test_what_is_missing_is_named_with_the_stage_that_makes_it(prompts: Path, run_cli: RunCli, tiny: Path) -> None:
    for words, stage in (
        (["regenerate", "--model-path", tiny, "--engine", "local"], "eagle3 prepare"),
        (["merge"], "eagle3 regenerate"),
        (["cache", "--model-path", tiny], "eagle3 merge"),
        (["train", "--model-path", tiny], "eagle3 merge"),
        (["eval", "--model-path", tiny, "--eval-data-path", "in.jsonl"], "eagle3 train"),
        (["export"], "eagle3 train"),
        (["bench", "--model-path", tiny, "--engine", "local"], "eagle3 export"),
    ):
        ran = run_cli(*words)
        assert ran.code in (1, 2)
        assert stage in ran.err.split("fix: ")[1], words
