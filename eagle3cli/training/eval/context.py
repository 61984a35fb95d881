"""Acceptance by context length: which ranges there are, and when people are told that it falls. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

CONTEXTS = {
    **{"0-511": 512.0, "512-1023": 1024.0, "1024-2047": 2048.0, "2048-4095": 4096.0, "4096-8191": 8192.0},
    **{"8192-16383": 16384.0, "16384-32767": 32768.0, "32768-": float("inf")},
}
"""Tokens of a conversation before the one that a verification step begins with, as ranges."""
FALL = 0.1
"""Share of the shortest context's acceptance length that a longer one may lose without a word."""
FEWEST_STEPS = 30
"""Verification steps from which on a range is judged."""


def context_warning(lengths: Mapping[str, float], steps: Mapping[str, int]) -> str | None:
    """What people are told where acceptance falls with the length of the context; None where it holds up.

    ``lengths`` and ``steps`` are acceptance lengths and verification steps by range of :data:`CONTEXTS`.
    """
    judged = [name for name in CONTEXTS if name in lengths and steps.get(name, 0) >= FEWEST_STEPS]
    if len(judged) < 2:
        return None
    first = judged[0]
    fallen = [name for name in judged[1:] if lengths[name] < (1 - FALL) * lengths[first]]
    if not fallen:
        return None
    worst = min(fallen, key=lambda name: lengths[name])
    lost = 1 - lengths[worst] / lengths[first]
    return (
        f"acceptance falls with the length of the context: {lengths[first]:.2f} at {first} tokens, "
        f"{lengths[worst]:.2f} at {worst} ({lost:.0%} less); train on rows as long as those that are served "
        "(--max-length), or a draft that looks no further back (--draft-window 1024)"
    )
