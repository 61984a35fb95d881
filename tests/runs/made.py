"""A training run's folder, made up: files as `eagle3 train` leaves them, without a training."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eagle3cli.runs.state import this_process
from eagle3cli.settings.tables import Settings
from eagle3cli.settings.toml import to_toml

DEPTHS = 7


def step_line(step: int, seconds: float, speed: float = 1000.0) -> dict[str, Any]:
    losses = [2.0 + 4.0 * math.exp(-step / 300) + 0.2 * depth for depth in range(DEPTHS)]
    return {
        "event": "step",
        "step": step,
        "epoch": step // 100,
        "loss": sum(losses) / DEPTHS,
        "depth_losses": losses,
        "accuracy": [0.6 - 0.05 * depth for depth in range(DEPTHS)],
        "grad_norm": 0.4,
        "learning_rate": 1e-3,
        "tokens": int(10 * speed),
        "tokens_per_s": speed,
        "time": {"target": 0.5, "forward": 0.25, "backward": 0.2, "optimiser": 0.03, "other": 0.02},
        "processor_seconds": 9.0,
        "peak_memory": 2_000_000_000 + step,
        "steps_left_out": 0,
        "seconds": seconds,
    }


def eval_line(step: int, seconds: float, best: float) -> dict[str, Any]:
    lengths = [1 + (best - 1) * (1 - 0.5**k) / (1 - 0.5**DEPTHS) * (1 - math.exp(-step / 200)) for k in range(1, 8)]
    return {
        "event": "eval",
        "step": step,
        "seconds": seconds,
        "acceptance_length": lengths,
        "accepted_per_position": [0.7**d for d in range(1, 8)],
        "by_reply_position": {"1-15": 1.5, "16-63": 1.8, "64-255": 2.0},
        "by_context_length": {"0-511": 1.9, "512-1023": 1.8, "1024-2047": 1.5},
        "context_steps": {"0-511": 900, "512-1023": 400, "1024-2047": 100},
        "accuracy": [0.6] * DEPTHS,
        "rows": 64,
        "evaluation_seconds": 3.0,
    }


def settings_text(**changed: Mapping[str, Any]) -> str:
    return to_toml(Settings.model_validate(changed))


def make_run(
    folder: Path,
    *,
    steps: int = 400,
    best: float = 2.2,
    speed: float = 1000.0,
    state: str = "finished",
    **settings: Any,
) -> Path:
    """A run of ``steps`` of 400 steps, a line every 10 (10 seconds), an evaluation every 100."""
    folder.mkdir(parents=True)
    lines: list[dict[str, Any]] = []
    for step in range(10, steps + 1, 10):
        lines.append(step_line(step, float(step), speed))
        if step % 100 == 0:
            lines.append(eval_line(step, float(step), best))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    about = {
        "eagle3": "1",
        "device": "cpu",
        "device_name": "a processor",
        "processes": 1,
        "draft_weights": 12345,
        "total_steps": 400,
        "budget_seconds": None,
        "data": {
            "kind": "cache",
            "folder": "cache/x",
            "train": {
                **{"rows": 90, "tokens": 9000, "loss_tokens": 4500, "truncated": 2, "no_span": 1, "rejected": 3},
                **{"reasons": {"<b>no messages</b>": 3}, "warnings": {}, "repaired": {"a role renamed": 4}},
            },
            "vocab": {
                **{"size": 32000, "target_size": 128256, "coverage_of_train": 0.97, "coverage": 0.96},
                "coverage_of": "eval",
            },
        },
        "samples": [
            {
                **{"title": "row 1 (id <i>x</i>)", "edges": ["reply 1: tokens 4 to 9"], "before": 0, "behind": 0},
                "runs": [["user", "<user>Hi & bye", False, True], ["assistant", "Hello <script>", True, True]],
            }
        ],
        "sessions": [{"state": state, "began": "2026-11-25 10:00:00+00:00", **this_process()}],
    }
    (folder / "run.json").write_text(json.dumps(about))
    (folder / "settings.toml").write_text(settings_text(**(settings or {"train": {"learning_rate": 1e-3}})))
    (folder / "log.txt").write_text(
        "2026-11-25 10:00:00+00:00 going on\n2026-11-25 10:00:01+00:00 warning: <u>odd</u>\n"
    )
    return folder
