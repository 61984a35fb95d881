"""What a refresh says when it is over: a table and lines for people, numbers for scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from eagle3cli.console.dispositions import dispositions, has_entries, remarks
from eagle3cli.pipeline.refresh.refresh import Refreshed

COLUMNS = ("held-out rows of", "before", "after", "change")


def table(done: Refreshed) -> tuple[str, tuple[str, ...], list[tuple[object, ...]]] | None:
    """Title, columns and rows; None where nothing was measured."""
    entry = done.entry or {}
    if not entry.get("acceptance"):
        return None
    rows: list[tuple[object, ...]] = [
        (name, values["before"], values["after"], f"{values['after'] / values['before'] - 1:+.1%}")
        for name, values in entry["acceptance"].items()
    ]
    return f"Acceptance length (k={entry['k']})", COLUMNS, rows


def as_data(done: Refreshed, draft: Path) -> dict[str, Any]:
    """For ``--json``: the ledger's line, or the counts of a refresh that decided nothing."""
    known = {"rows": done.rows} if done.entry is None else done.entry
    return {"draft": draft, "promoted": done.promoted, "state": done.state, **known}


def as_text(done: Refreshed, draft: Path) -> str:
    """The last lines."""
    lines = []
    if done.rows:
        lines = [f"read {done.rows['read']:,}: {dispositions(done.rows)}", *remarks(done.rows)]
        if has_entries(done.rows):
            lines.append(f"each with its place and reason: {done.errors}")
    if done.promoted:
        lines.append(f"restart the servers of {draft}; back again: eagle3 refresh {draft} --rollback")
    return "\n".join([*lines, done.state])
