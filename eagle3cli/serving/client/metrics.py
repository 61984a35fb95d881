"""Numbers out of a server's ``/metrics`` page (Prometheus text)."""

from __future__ import annotations

import re
from contextlib import suppress

from eagle3cli.serving.client.protocol import Acceptance

_LINE = re.compile(r"^([\w:]+)(?:\{([^}\n]*)\})? (\S+)", re.MULTILINE)
_SPECULATION = "vllm:spec_decode_"


def read_metrics(text: str, label: str | None = None) -> dict[str, float]:
    """The numbers by name, summed over their labels; with ``label`` only those that have it, by ``name{value}``."""
    metrics: dict[str, float] = {}
    for name, labels, number in _LINE.findall(text):
        if label is not None:
            value = re.search(rf'\b{label}="([^"]*)"', labels)
            if value is None:
                continue
            name = f"{name}{{{value[1]}}}"
        with suppress(ValueError):
            metrics[name] = metrics.get(name, 0.0) + float(number)
    return metrics


def acceptance_in_metrics(text: str) -> Acceptance | None:
    """vLLM's counters of speculation; None where the page has none."""
    metrics = read_metrics(text)
    names = ("num_drafts_total", "num_accepted_tokens_total", "num_draft_tokens_total")
    if not all(_SPECULATION + name in metrics for name in names):
        return None
    passes, accepted, proposed = (int(metrics[_SPECULATION + name]) for name in names)
    by_position = read_metrics(text, "position")
    positions: list[int] = []
    while (key := f"{_SPECULATION}num_accepted_tokens_per_pos_total{{{len(positions)}}}") in by_position:
        positions.append(int(by_position[key]))
    return Acceptance(passes, accepted, proposed, tuple(positions))


def is_vllm_on_cpu(text: str) -> bool:
    """Whether a vLLM's page shows what its CPU platform alone sets: a fixed size of the cache in large blocks."""
    line = re.search(r"^vllm:cache_config_info\{([^}\n]*)\}", text, re.MULTILINE)
    labels = dict(re.findall(r'(\w+)="([^"]*)"', line[1])) if line else {}
    return labels.get("kv_cache_memory_bytes", "None") != "None" and labels.get("block_size") == "128"
