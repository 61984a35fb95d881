"""Whether a draft that was trained on takes the place of the served one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from eagle3cli.settings.refresh import RefreshSettings

TRAFFIC, OLD, EARLIER = "traffic", "old", "earlier traffic"
Acceptance = Mapping[str, Mapping[str, float]]
"""Acceptance length by set: ``before`` of the served draft, ``after`` of the new one, and on the old data ``best``, the
highest that any version before it had: small losses of many nights would add up."""


SHARES = (1.0, 0.75, 0.5, 0.25)
"""Of the way from the served draft to the trained one: all of it, or less where that forgets too much."""


def furthest(measure: Callable[[float], Acceptance], options: RefreshSettings) -> tuple[float, Acceptance]:
    """The largest of :data:`SHARES` that may be promoted, and what was measured of it; where none may, all of the way.

    Less of the way is tried only where the logs gain and something else loses too much.
    """
    whole = measure(SHARES[0])
    share, acceptance = SHARES[0], whole
    for less in SHARES[1:]:
        if not why_not(acceptance, options):
            return share, acceptance
        if why_not({TRAFFIC: acceptance[TRAFFIC]}, options):
            break
        share, acceptance = less, measure(less)
    return (SHARES[0], whole) if why_not(acceptance, options) else (share, acceptance)


def why_not(acceptance: Acceptance, options: RefreshSettings) -> str:
    """Why the new draft is not promoted; empty where it is."""
    traffic = acceptance[TRAFFIC]
    gain = traffic["after"] / traffic["before"] - 1
    if traffic["after"] <= traffic["before"] or gain < options.least_gain:
        return f"acceptance on the logs' held-out rows changed by {gain:+.1%}; {options.least_gain:+.1%} is asked for"
    for name in (OLD, EARLIER):
        if name in acceptance:
            before = acceptance[name]["before"]
            reference = acceptance[name].get("best", before)
            loss = 1 - acceptance[name]["after"] / reference
            if loss > options.tolerance:
                below = "" if reference == before else f" below the {reference:g} of an earlier version"
                return f"acceptance on the {name} data fell by {loss:.1%}{below}; {options.tolerance:.1%} is tolerated"
    return ""


def choice(tried: Sequence[float], *, promoted: bool) -> str:
    """What is said of a decision between several drafts, by the shares of the way that were measured; empty for one."""
    if len(tried) < 2:
        return ""
    if promoted:
        return (
            f", {tried[-1]:.0%} of the way to the trained draft; the held-out rows chose it out of {len(tried)} "
            "drafts, so its numbers are a little too good"
        )
    return f" (nor will a draft do that is {', '.join(f'{share:.0%}' for share in tried[1:])} of the way to it)"


def best_before(entries: list[dict[str, Any]], ancestors: list[int], k: int, before: float) -> float:
    """The highest acceptance on the old data that earlier versions had, by the ledger; ``before`` is the newest's."""
    known = [
        float(value)
        for entry in entries
        if entry["version"] in ancestors and entry.get("k") == k
        for name, value in (entry.get("acceptance") or {}).get(OLD, {}).items()
        if name in ("before", "after")
    ]
    return max([*known, before])


def why_foreign(judged: int, foreign: int, options: RefreshSettings) -> str:
    """Why logs are not trusted at all; empty where they are."""
    if judged and foreign / judged > options.most_foreign:
        share = f"{foreign:,} of {judged:,} replies cannot be the target's"
        return (
            f"{share} (garbage, or said to be its greedy replies and are not); {options.most_foreign:.0%} is tolerated"
        )
    return ""
