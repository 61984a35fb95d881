"""Every family goes the whole way: capture, three steps, export, the loader's check, lossless local decoding."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eagle3cli.models.checkpoint import check_folder
from tests.conftest import RunCli
from tests.families import family_target
from tests.tiny import conversations

CHOSEN = (
    *("llama", "llama-tied", "llama4", "mistral", "mixtral", "qwen2", "qwen3", "qwen3-moe", "phi3", "phi4-mini"),
    *("gpt-oss", "deepseek-v2", "deepseek-v3", "gemma2", "gemma3", "glm4", "cohere2", "granite", "gemma3-vision"),
)
"""Qwen2.5 and QwQ are of Qwen2's class, Phi-4 of Phi-3's; the others' states are in ``backends/test_families.py``."""
SETTINGS = """
[target]
model_path = "target"
threads = 1
[draft]
vocab_size = 200
[data]
train_path = "train.jsonl"
max_length = 96
[train]
total_steps = 3
batch_size = 4
learning_rate = 1e-3
ttt_length = 3
log_interval = 1
[bench]
engine = "local"
benchmark_list = ["mtbench-like:3"]
config_list = ["3,0,0,0", "3,3,1,4"]
max_tokens = 16
"""


def prepare(folder: Path, name: str) -> None:
    family_target(folder / "target", name)
    (folder / "train.jsonl").write_text(conversations(8, 0))
    (folder / "eagle3.toml").write_text(SETTINGS)


def train_and_export(folder: Path, run_cli: RunCli) -> None:
    """Capture, train, export and check."""
    for words in (
        ("hidden-states",),
        ("train", "--mode", "offline", "--output-dir", "run"),
        ("export", "--draft-model-path", "run", "--output-path", "draft"),
    ):
        ran = run_cli(*words, cwd=folder)
        assert ran.code == 0, ran.err
    events = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [event["step"] for event in events if event["event"] == "step"] == [1, 2, 3]
    target = json.loads((folder / "target" / "config.json").read_text())
    check_folder(folder / "draft", target=target)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHOSEN)
def test_the_whole_way(tmp_path: Path, run_cli: RunCli, name: str) -> None:
    prepare(tmp_path, name)
    train_and_export(tmp_path, run_cli)
    ran = run_cli("bench", "--speculative-draft-model-path", "draft", "--json", cwd=tmp_path)
    assert ran.code == 0, ran.err
    plain, chain = ran.json["configurations"]
    assert (plain["steps"], chain["steps"], chain["compared"]) == (0, 3, 3)
    assert chain["identical"] + chain["differences_at_ties"] == 3


@pytest.mark.slow
def test_a_past_that_cannot_be_rolled_back_is_refused_by_local_decoding(tmp_path: Path, run_cli: RunCli) -> None:
    prepare(tmp_path, "qwen3-next")
    train_and_export(tmp_path, run_cli)
    ran = run_cli("bench", "--speculative-draft-model-path", "draft", cwd=tmp_path)
    assert ran.code != 0
    assert "its past is not keys and values by position alone" in ran.err
