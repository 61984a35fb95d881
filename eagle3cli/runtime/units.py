"""Bytes and times as people read them."""

from __future__ import annotations

import re

from eagle3cli.errors import UsageError


def size_text(count: int) -> str:
    """Bytes for people: 1.3 GB."""
    value = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit in ("bytes", "kB") else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def time_text(seconds: float) -> str:
    """A time for people: 40 s, 12 min, 3.5 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def parse_duration(text: str | None) -> float | None:
    """Seconds of ``90``, ``90s``, ``40m`` or ``1.5h``; None for None."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smh]?)", text.strip())
    if not match or float(match[1]) <= 0:
        raise UsageError(
            "invalid-value", f"not a duration: {text}", where="--time-budget", fix="write 90s, 40m or 1.5h"
        )
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600}[match[2]]
