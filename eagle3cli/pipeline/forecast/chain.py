"""Rows and tokens that reach each stage of a run: what is done is counted, what comes follows from what is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from eagle3cli.data.prepare.merge import EVAL_SHARE
from eagle3cli.pipeline.forecast.ranges import Range, as_range
from eagle3cli.pipeline.forecast.rows import Known
from eagle3cli.settings.tables import Settings

KEPT = Range(0.9, 1.0)
"""Rows whose replies are usable: what fails is not known before."""
KEPT_BY_FILTERS = 0.3
"""Least share that merge keeps where it drops replies that loop, refuse or were cut."""
CUT = 0.7
"""The mean of rows of which the longest are cut, against the mean of all, at least."""


@dataclass(frozen=True)
class Chain:
    """Rows and tokens on their way through the stages."""

    prompts: Range
    """Rows that prepare writes."""
    replies: Range
    written: Range
    """Tokens of all replies."""
    answered: Range
    """Rows with all their replies."""
    trained: Range
    held: Range
    """Held-out rows."""
    row: Range
    """Mean tokens of a row, as it is trained on."""
    loss: Range
    """Those of them that carry loss."""


def follow(settings: Settings, known: Known, finished: Mapping[str, dict[str, Any]]) -> Chain:
    """The rows from stage to stage; ``finished`` are the results of the stages that are done, by name."""
    prompts = as_range(finished["prepare"]["train_rows"]) if "prepare" in finished else known.rows
    turns = known.turns if settings.regenerate.turns == "all" else as_range(1.0)
    answered = prompts * KEPT
    of_row = turns * known.reply_tokens
    if "regenerate" in finished:
        result = finished["regenerate"]
        answered = as_range(result["rows"] - result["errors"])
        if result["tokens"] and not result["recorded"]:
            of_row = as_range(result["tokens"] / max(1, answered.low))
    trained, held = _split(settings, answered, finished)
    row, loss = _lengths(settings, known, of_row, finished)
    return Chain(prompts, prompts * turns, prompts * of_row, answered, trained, held, row, loss)


def _split(settings: Settings, answered: Range, finished: Mapping[str, dict[str, Any]]) -> tuple[Range, Range]:
    """Rows that are trained on, and held-out ones."""
    if "cache" in finished:
        result = finished["cache"]
        return as_range(result["train"]["rows"]), as_range((result.get("eval") or {"rows": 0})["rows"])
    if "merge" in finished:
        return as_range(finished["merge"]["train_rows"]), as_range(finished["merge"]["eval_rows"])
    merge = settings.merge
    drops = merge.drop_loops or merge.drop_refusals or merge.drop_truncated
    left = answered * Range(KEPT_BY_FILTERS if drops else KEPT.low, 1.0)
    share = Range(left.low // EVAL_SHARE, left.high // EVAL_SHARE)
    held = (left if "eval_size" in merge.model_fields_set else share).at_most(merge.eval_size)
    trained = Range(max(1.0, left.low - held.high), max(1.0, left.high - held.low))
    return trained.at_most(merge.train_size or trained.high), held


def _lengths(
    settings: Settings, known: Known, of_row: Range, finished: Mapping[str, dict[str, Any]]
) -> tuple[Range, Range]:
    """Tokens of a row, and those of them that carry loss."""
    if "cache" in finished:
        counts = finished["cache"]["train"]
        rows = max(1, counts["rows"])
        return as_range(counts["tokens"] / rows), as_range(counts["loss_tokens"] / rows)
    longest = settings.data.row_limit
    whole = known.prompt_tokens + of_row
    cut = CUT if whole.high > longest else 1.0
    row = Range(max(1.0, cut * min(whole.low, longest)), min(whole.high, longest))
    loss = Range(min(of_row.low, row.low) * cut, min(of_row.high + known.turns.high, row.high))
    return row, loss
