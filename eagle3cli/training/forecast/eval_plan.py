"""What eval would measure: rows, passes, and whether a cache has to be built first."""

from __future__ import annotations

from pathlib import Path

from eagle3cli.data.hidden_states.store import Store
from eagle3cli.data.tokens.cache import find_cache
from eagle3cli.data.tokens.rows import TokenRows
from eagle3cli.errors import UsageError
from eagle3cli.models.folders import find_draft
from eagle3cli.runtime.plan import Plan
from eagle3cli.settings.tables import Settings
from eagle3cli.training.eval.measure import held_out, rows_at_once


def plan_eval(settings: Settings) -> Plan:
    """Raises as the command would for a missing draft and missing data."""
    if settings.draft.path is None:
        raise UsageError(
            "missing-draft", "no draft", where="--draft-model-path", fix="run eagle3 train first, or give a folder"
        )
    folder = find_draft(Path(settings.draft.path))
    store = settings.data.eval_hidden_states_path
    lengths: list[int] | None = None
    if store is not None:
        lengths = Store(store).lengths
        where = str(store)
    else:
        settings = held_out(settings)
        data = settings.data
        split = "eval" if data.eval_path is not None and data.eval_path != data.train_path else "train"
        cache = find_cache(settings)
        if cache is not None:
            lengths = TokenRows.open(cache / split).lengths
        where = str(cache / split if cache is not None else data.eval_path or data.train_path)
    if lengths is None:
        work = (f"tokenize the rows, then simulate acceptance at {settings.eval.depths} depths",)
        return Plan("eval", reads=(str(folder), where), does=work, numbers={"rows_known": False})
    lengths = lengths[: settings.eval.rows]
    together = rows_at_once(max(lengths, default=1))
    passes = -(-len(lengths) // together)
    live = "" if store is not None else " of target and draft"
    return Plan(
        "eval",
        reads=(str(folder), f"{where}: {len(lengths):,} rows, {sum(lengths):,} tokens"),
        does=(f"{passes:,} passes{live} over {together} rows each, {settings.eval.depths} depths",),
        numbers={"rows_known": True, "rows": len(lengths), "tokens": sum(lengths), "passes": passes},
    )
