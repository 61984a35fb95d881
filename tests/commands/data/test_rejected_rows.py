"""Rows that cannot be used: exit code 3 when it happens, 0 when it happened earlier, and no later stage dies of one."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from eagle3cli.data.sources import presets
from eagle3cli.serving.regenerate.recorded import prompt_sha
from tests.conftest import ROOT, Ran, RunCli
from tests.tiny import tiny_config, tiny_tokenizer

ODD_REPLIES = (" ", "", "\n\n", "\u200b", "\u00a0\t")
RECIPE = """
[run]
k = 2
held_out_prompts = 12
new_tokens = 4
speed_prompts = 2
[target]
model_path = "{tiny}"
threads = 1
[draft]
vocab_size = 128
[data]
num_proc = 1
[prepare]
source = "in.jsonl"
[regenerate]
recorded = "recorded.jsonl"
engine = "local"
max_tokens = 4
[merge]
eval_size = 12
[train]
total_steps = 2
batch_size = 4
ttt_length = 2
[bench]
engine = "local"
benchmark_list = ["held.jsonl:6"]
config_list = ["1,1,1,2"]
max_tokens = 4
"""


def talk(name: str, *said: str) -> dict[str, Any]:
    turns = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]
    return {"id": name, "conversations": turns}


def write(path: Path, rows: list[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A target of a tokenizer and a config, all that caching needs."""
    tiny_tokenizer().save_pretrained(tmp_path / "target")
    tiny_config("qwen2").save_pretrained(tmp_path / "target")
    return tmp_path / "target"


def assert_told_once(run_cli: RunCli, *words: object) -> Ran:
    first = run_cli(*words)
    assert first.code == 3, first.err
    again = run_cli(*words)
    assert again.code == 0, again.err
    assert "rejected rows were told when this was made; nothing is new" in again.out
    return again


def test_a_file_and_a_preset_say_the_same(run_cli: RunCli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [talk("a", "How?", "So."), talk("b", "  ", "So.")]
    write(tmp_path / "in.jsonl", rows)
    assert_told_once(run_cli, "prepare", "in.jsonl")
    mine = presets.Preset("mine", "MIT", ("someone/mine",))
    monkeypatch.setitem(presets.PRESETS, "mine", mine)
    assert_told_once(run_cli, "prepare", "mine", "--data-path", "in.jsonl")


def test_merge_and_cache(run_cli: RunCli, tmp_path: Path, bare: Path) -> None:
    rows = [{**talk(f"r{i}", f"{i}: How?", "So."), "finish": ["stop"]} for i in range(12)]
    write(tmp_path / "cache" / "regenerated" / "shard_0-13.jsonl", [*rows, talk("odd", " ", "So.")])
    assert_told_once(run_cli, "merge")
    write(tmp_path / "own.jsonl", [*rows, {"id": "odd"}])
    assert_told_once(run_cli, "cache", "--model-path", bare, "--train-data-path", "own.jsonl")


@pytest.mark.slow
def test_regenerate(run_cli: RunCli, tmp_path: Path, tiny: Path) -> None:
    words = ("regenerate", "--model-path", tiny, "--engine", "local", "--max-tokens", 4, "--input-path")
    long = talk("long", "word " * 800)
    write(tmp_path / "in.jsonl", [talk("a", "How?"), long])
    assert run_cli(*words, "in.jsonl").code == 3
    again = run_cli(*words, "in.jsonl")
    assert (again.code, "1 failed rows were told earlier" in again.out) == (0, True)
    assert "next: eagle3 merge" in again.out
    assert run_cli(*words, "in.jsonl", "--retry-errors").code == 3  # tried, and failed now
    write(tmp_path / "bad.jsonl", [long, long])
    for _ in range(2):
        nothing = run_cli(*words, "bad.jsonl", "--output-dir", "none")
        assert nothing.code == 1
        assert "next:" not in nothing.out
        assert "2 x too long for the context" in nothing.out


@pytest.mark.slow
def test_no_later_stage_dies_of_what_an_earlier_one_took(run_cli: RunCli, tmp_path: Path, tiny: Path) -> None:
    """The target says nothing but blanks now and then, and the held-out file of a benchmark has rows of all kinds."""
    prompts = [talk(f"p{i}", f"{i}: How?") for i in range(40)]
    write(tmp_path / "in.jsonl", [*prompts, talk("odd", " ", "So."), talk("tabs", "a\x00b\u200b"), {"id": "none"}])
    header = {"target": tiny.name, "max_tokens": 4, "temperature": 0}
    replies = [
        {
            "id": f"p{i}",
            "prompt_sha": prompt_sha(f"{i}: How?"),
            "reply": ODD_REPLIES[i % 5] if i % 3 else "So it goes.",
            "finish": "stop",
        }
        for i in range(40)
    ]
    write(tmp_path / "recorded.jsonl", [header, *replies])
    asked = [talk(f"h{i}", "How?", ODD_REPLIES[i % 5], "And?", "So.") for i in range(5)]
    write(tmp_path / "held.jsonl", [{"id": "none"}, talk("blank", " ", "So."), *asked, talk("last", "How?")])
    (tmp_path / "mine.toml").write_text(RECIPE.format(tiny=tiny))
    ran = run_cli("run", "mine.toml", "--json")
    assert ran.code == 0, ran.err
    assert "held.jsonl: 2 rows are no questions and are left out, the first at held.jsonl:1" in ran.err
    report = json.loads((tmp_path / "runs" / "mine" / "report.json").read_text())
    assert report["tasks"]
    assert run_cli("run", "mine.toml").code == 0


@pytest.mark.parametrize("script", ["online.sh", "offline.sh"])
@pytest.mark.parametrize(("code", "runs_on"), [(3, True), (1, False), (2, False), (143, False)])
def test_the_example_scripts_go_on_after_3_alone(tmp_path: Path, script: str, code: int, runs_on: bool) -> None:
    """A program in the place of eagle3 notes its command and ends every time with this code."""
    program = tmp_path / "eagle3"
    program.write_text(f'#!/usr/bin/env bash\necho "$1" >> "{tmp_path}/calls"\nexit {code}\n')
    program.chmod(0o755)
    path = f"{tmp_path}:/usr/bin:/bin"
    done = subprocess.run(["bash", str(ROOT / "examples" / script)], cwd=tmp_path, env={"PATH": path}, check=False)
    calls = (tmp_path / "calls").read_text().split()
    assert (done.returncode, len(calls) > 1) == (0 if runs_on else code, runs_on)
    assert (calls[-1] == "bench") is runs_on
