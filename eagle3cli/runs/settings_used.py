"""Settings as a run used them: what differs from the defaults, or between runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from eagle3cli.console.report import Section
from eagle3cli.settings.fields import fields
from eagle3cli.settings.toml import literal

OUTPUT_PATHS = ("train.output_dir", "run.output_dir")
"""Where a run is does not make it another run."""

Tables = Mapping[str, Mapping[str, Any]]


def settings_section(settings: Tables) -> Section:
    """What was set, as a table that opens by a click."""
    rows = [(key, value_text(value)) for key, value in flatten(settings).items() if value != _default(key)]
    differ = "setting differs from its default" if len(rows) == 1 else "settings differ from their defaults"
    text = f"{len(rows)} {differ}; settings.toml beside this page holds all."
    return Section("Settings", (text,) if rows else (), ("setting", "value"), rows, folded=True, on_terminal=False)


def differing_settings(runs: Sequence[Tables]) -> list[tuple[str, list[str]]]:
    """The settings in which runs differ, with the value of each run."""
    tables = [flatten(settings) for settings in runs]
    keys = dict.fromkeys(key for table in tables for key in table)
    rows = []
    for key in keys:
        values = [value_text(table.get(key, _default(key))) for table in tables]
        if len(set(values)) > 1 and key not in OUTPUT_PATHS:
            rows.append((key, values))
    return rows


def flatten(settings: Tables) -> dict[str, Any]:
    """``table.name`` to value."""
    return {f"{table}.{name}": value for table, values in settings.items() for name, value in values.items()}


def value_text(value: Any) -> str:
    """A value as people read it."""
    if value is None:
        return "-"
    return str(value) if isinstance(value, str) else literal(value)


def _default(key: str) -> Any:
    """The default as it would stand in a file; None for none."""
    field = fields().get(key)
    value = field.default if field else None
    if value is None or isinstance(value, bool | int | float):
        return value
    return list(value) if isinstance(value, tuple) else str(value)
