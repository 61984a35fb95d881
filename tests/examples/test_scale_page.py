"""The page on scale: its table is what the model of throughput says."""

from __future__ import annotations

import re

from eagle3cli.training.forecast.throughput import Cluster, Step, draft_flops, step_time
from tests.conftest import ROOT
from tests.speed.step.splits import line

ROW = r"^\| (\d+) \| (\d+) \| (whole on each|in shards) \| (\d+) \| ([\d,]+) \| ([\d.]+) \|$"
FC, HEAD, WEIGHTS, HIDDEN = 3 * 4096 * 4096, 32000 * 4096, 424_689_664, 4096
"""Weights of the draft of Llama-3.1-8B: of fc, of the head, all; and its width."""


def test_the_table_is_the_models() -> None:
    rows = re.findall(ROW, (ROOT / "examples" / "scale.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == 7
    flops = draft_flops(fc=FC, layer=WEIGHTS - FC - HEAD, head=HEAD, hidden=HIDDEN, length=2048, ttt_steps=7)
    for gpus, nodes, draft, *told in rows:
        step = Step(tokens=16384 * int(gpus), weights=WEIGHTS, draft_flops=flops, sharded=draft == "in shards")
        found = step_time(step, Cluster(gpus=int(gpus), nodes=int(nodes)))
        assert told == [f"{found.total * 1e3:.0f}", f"{found.tokens_per_s:,.0f}", f"{found.efficiency:.2f}"]


def test_the_splits_are_the_forecasts() -> None:
    page = (ROOT / "examples" / "scale.md").read_text(encoding="utf-8")
    for name, gpus, targets, tp_size in (
        ("llama-3.1-8b", 8, 0, 1),
        ("llama-3.1-8b", 8, 4, 1),
        ("llama-3.1-8b", 8, 5, 1),
        ("qwen3-235b-a22b", 16, 8, 8),
    ):
        assert f"{line(name, gpus, targets, tp_size)}\n" in page
