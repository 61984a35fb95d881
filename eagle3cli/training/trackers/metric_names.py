"""The numbers of a run's history under the names that trackers show, in two groups: ``train/`` and ``eval/``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

GROUPS = {"step": "train", "eval": "eval"}
LISTS = {
    "depth_losses": "loss_depth_{}",
    "accuracy": "accuracy_depth_{}",
    "acceptance_length": "acceptance_length_k_{}",
    "accepted_per_position": "accepted_at_depth_{}",
}
"""How the entries of a list are called, from 1; another list has its own name and the number."""
REFUSED = re.compile(r"[^A-Za-z0-9_./ -]")
"""What MLflow does not take in a name."""


def named_metrics(event: str, numbers: Mapping[str, Any]) -> dict[str, float]:
    """``{"train/loss": 2.1, "train/loss_depth_1": 1.9}`` for an event of the trainer, without what is no number."""
    metrics: dict[str, float] = {}
    for name, value in numbers.items():
        if name in ("step", "event"):
            continue
        if isinstance(value, list | tuple):
            pattern = LISTS.get(name, name + "_{}")
            entries = {pattern.format(i): entry for i, entry in enumerate(value, start=1)}
        elif isinstance(value, Mapping):
            entries = {f"{name}_{key}": entry for key, entry in value.items()}
        else:
            entries = {name: value}
        group = GROUPS.get(event, event)
        for key, entry in entries.items():
            if isinstance(entry, int | float) and not isinstance(entry, bool):
                metrics[REFUSED.sub("_", f"{group}/{key}")] = float(entry)
    return metrics
