"""What cache would do, from the files that are there."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from eagle3cli.data.sources.files import lines_in
from eagle3cli.data.tokens.build import JUDGED, SUMMARY
from eagle3cli.data.tokens.cache import data_paths, find_cache, judge_masks
from eagle3cli.data.tokens.lengths import kept_lines
from eagle3cli.data.tokens.on_policy import describe, lines, warning
from eagle3cli.data.tokens.rows import TokenRows
from eagle3cli.errors import ModelError
from eagle3cli.runtime.files import read_json
from eagle3cli.runtime.plan import Plan
from eagle3cli.runtime.units import size_text
from eagle3cli.settings.tables import Settings

TOKEN_BYTES = 5
"""Of a token row on disk: an id and a mask."""


def plan_cache(settings: Settings) -> Plan:
    """What ``eagle3 cache`` would do. Raises as it would for missing data and a tokenizer that cannot be loaded."""
    paths = data_paths(settings)
    folder = find_cache(settings)
    judged = planned_judgement(settings, folder)
    if folder is not None:
        summary = read_json(folder / SUMMARY)
        counts = {split: {k: summary[split][k] for k in ("rows", "tokens", "loss_tokens")} for split in paths}
        done = [f"{folder / split}: {n['rows']:,} rows, {n['tokens']:,} tokens" for split, n in counts.items()]
        kept = {split: summary[split]["kept"] for split in paths if "kept" in summary[split]}
        done += [f"{split}, {line}" for split, counted in kept.items() for line in kept_lines(counted)]
        known = on_policy_of(folder, paths)
        done += [f"{split}, {line.strip()}" for split, summary in known.items() for line in lines(summary)]
        return Plan(
            "cache",
            done=tuple(done),
            does=("choose the draft vocabulary from the counts that are there",),
            writes=(f"{settings.data.cache_dir / 'vocab_mapping'}",),
            warnings=tuple(filter(None, (warning(summary, split) for split, summary in known.items()))),
            numbers={
                "already_done": True,
                "folder": str(folder),
                **judged,
                **counts,
                **({"kept": kept} if kept else {}),
                **({"on_policy": known} if known else {}),
            },
        )
    rows = {split: lines_in(path) or 0 for split, path in paths.items()}
    tokens = sum(rows.values()) * settings.data.row_limit
    return Plan(
        "cache",
        reads=tuple(f"{path}: {rows[split]:,} rows" for split, path in paths.items()),
        does=(
            f"tokenize and mask {sum(rows.values()):,} rows of at most {settings.data.row_limit:,} tokens",
            "count them and choose the draft vocabulary",
        ),
        writes=(f"{settings.data.cache_dir / 'processed_dataset'}: at most {size_text(TOKEN_BYTES * tokens)}",),
        numbers={
            "already_done": False,
            "rows": rows,
            "tokens_at_most": tokens,
            "disk_bytes": TOKEN_BYTES * tokens,
            **judged,
        },
    )


def on_policy_of(folder: Path, splits: Iterable[str]) -> dict[str, dict[str, Any]]:
    """How far the rows of a finished cache hold the target's own replies, by split, where a pass has seen that."""
    summaries = {split: describe(folder / split, TokenRows.open(folder / split).sources) for split in splits}
    return {split: summary for split, summary in summaries.items() if summary is not None}


def planned_judgement(settings: Settings, folder: Path | None) -> dict[str, dict[str, int]]:
    """What the judge says of the masks of a sample of rows; nothing where the tokenizer is not here.

    ``folder`` is a finished cache. Raises DataError where a mask is wrong.
    """
    with suppress(ModelError):
        judged = judge_masks(settings, folder)
        return {} if judged is None else {JUDGED: judged}
    return {}
