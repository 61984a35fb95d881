"""What a person should know of a cache: its rows, what was wrong with some, and what the draft's vocabulary covers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eagle3cli.console.dispositions import has_entries, remarks
from eagle3cli.data.tokens.lengths import kept_lines
from eagle3cli.data.tokens.on_policy import lines as on_policy_lines


def summary_text(summary: dict[str, Any], folder: Path) -> str:
    """The summary of ``eagle3 cache`` as text."""
    lines = ["cached" if summary["built"] else "already cached, nothing to do"]
    for name in _splits(summary):
        lines += _split_lines(name, summary[name], told_earlier=not summary["built"])
    for name, known in (summary.get("on_policy") or {}).items():
        lines += [f"{name}, {line}" if not line.startswith(" ") else line for line in on_policy_lines(known)]
    lines += _vocab_lines(summary["vocab"])
    if any(has_entries(summary[name]) for name in _splits(summary)):
        lines.append(f"rows that need a look: {folder / 'errors.jsonl'}")
    lines += [
        f"rows: {folder}",
        f"vocabulary: {summary['vocab']['file']}",
    ]
    return "\n".join(lines)


def rejected(summary: dict[str, Any]) -> list[int]:
    """How many rows of each split were rejected."""
    return [summary[name]["rejected"] for name in _splits(summary)]


def _splits(summary: dict[str, Any]) -> list[str]:
    return [name for name in ("train", "eval") if name in summary]


def _split_lines(name: str, counts: dict[str, Any], *, told_earlier: bool) -> list[str]:
    """What a person should know of one split."""
    share = counts["loss_tokens"] / max(1, counts["tokens"])
    lines = [
        f"{name}: {counts['rows']:,} rows, {counts['tokens']:,} tokens, {counts['loss_tokens']:,} trained, {share:.0%}",
        f"  truncated {counts['truncated']:,}, without a reply {counts['no_span']:,}, rejected {counts['rejected']:,}",
    ]
    if "kept" in counts:  # caches of earlier versions do not say it
        lines += [f"  {line}" for line in kept_lines(counts["kept"])]
    return lines + remarks(counts, told_earlier=told_earlier)


def _vocab_lines(vocab: dict[str, Any]) -> list[str]:
    """What a person should know of the draft's vocabulary."""
    shares = vocab["coverage_by_size"]
    size = vocab["size"]
    suggested = vocab["suggested_size"]
    enough = next((n for n, share in shares.items() if share == 1.0), vocab["target_size"])
    by_size = ", ".join(f"{n:,}: {share:.1%}" for n, share in shares.items() if n <= enough or n in (size, suggested))
    why = (
        "all there are"
        if suggested == vocab["target_size"]
        else "the smallest multiple of 1,024 that covers 99% of those"
    )
    judged = "eval" if vocab["coverage_of"] == "eval" else "each 20th row, by a vocabulary chosen without them"
    return [
        f"draft vocabulary: {size:,} of {vocab['target_size']:,} tokens, {vocab['always_in']} of them special; "
        f"it covers {vocab['coverage_of_train']:.1%} of the reply tokens of train",
        f"  covered reply tokens of {judged}: {by_size}",
        f"  suggested: --draft-vocab-size {suggested}, {why}",
    ]
