"""A draft of latent attention (MLA) goes the whole way: prepare, train, eval, export, import, bench."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from tests.conftest import RunCli
from tests.families import family_target
from tests.tiny import conversations

SETTINGS = """
[target]
model_path = "target"
threads = 1
[draft]
vocab_size = 200
[data]
train_path = "rows/train.jsonl"
eval_path = "rows/train.jsonl"
max_length = 96
[train]
total_steps = 4
batch_size = 4
learning_rate = 1e-3
ttt_length = 3
optimizer = "muon"
[bench]
engine = "local"
benchmark_list = ["mtbench-like:3"]
config_list = ["3,0,0,0", "3,3,1,4"]
max_tokens = 16
"""


@pytest.mark.slow
def test_the_whole_way(tmp_path: Path, run_cli: RunCli) -> None:
    family_target(tmp_path / "target", "deepseek-v3")
    (tmp_path / "raw.jsonl").write_text(conversations(8, 0))
    (tmp_path / "eagle3.toml").write_text(SETTINGS)
    for words in (
        ("prepare", "raw.jsonl", "--output-path", "rows"),
        ("train", "--draft-model-config", "mla", "--output-dir", "run"),
        ("eval", "--draft-model-path", "run"),
        ("export", "--draft-model-path", "run", "--output-path", "draft"),
        ("import", "--draft-model-path", "draft", "--output-path", "again"),
    ):
        ran = run_cli(*words)
        assert ran.code == 0, ran.err
    raw = json.loads((tmp_path / "draft" / "config.json").read_text())
    assert (raw["q_lora_rank"], raw["kv_lora_rank"], raw["num_attention_heads"]) == (24, 16, 4)
    tensors = load_file(tmp_path / "draft" / "model.safetensors")
    assert tensors["midlayer.self_attn.kv_a_proj_with_mqa.weight"].shape == (24, 128)
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(bool((again[name] == value).all()) for name, value in tensors.items())
    ran = run_cli("bench", "--speculative-draft-model-path", "draft", "--json")
    assert ran.code == 0, ran.err
    plain, chain = ran.json["configurations"]
    assert (plain["steps"], chain["steps"], chain["compared"]) == (0, 3, 3)
    assert chain["identical"] + chain["differences_at_ties"] == 3
