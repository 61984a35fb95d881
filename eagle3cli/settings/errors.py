"""What is wrong with a person's settings: each error with its place, and how to fix it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from eagle3cli.errors import UsageError
from eagle3cli.settings.fields import SettingsField, fields, tables
from eagle3cli.settings.renamed import GONE, RENAMED, TABLES
from eagle3cli.settings.toml import literal

DEFAULT = "default"


def combine(errors: Sequence[UsageError]) -> UsageError:
    """The one error that there is, or one that lists all, in the order of the files' lines."""
    if len(errors) == 1:
        return errors[0]
    lines = "\n".join(map(str, sorted(errors, key=_file_and_line)))
    return UsageError("invalid-value", f"{len(errors)} settings are wrong\n{lines}")


def _file_and_line(error: UsageError) -> tuple[str, int]:
    match = re.match(r"(.*?):(\d+)", error.where or "")
    return (match[1], int(match[2])) if match else ("\uffff", 0)  # what stands in no file comes last


def unknown_key(name: str, where: str) -> UsageError:
    """The error for a table (``train``) or a key (``train.seed``) that does not exist."""
    kind = "key" if "." in name else "table"
    names = fields() if kind == "key" else tables()
    table, _, last = name.rpartition(".")
    homes = [key for key in names if key.rpartition(".")[2] == last]
    if last in GONE:
        fix = GONE[last]
    elif kind == "key" and table in tables() and homes:
        fix = f"{last} stands in the table " + " or ".join(f"[{key.partition('.')[0]}]" for key in homes)
    else:
        close = _renamed(name) or suggest(name, names)
        fix = f"did you mean {close}?" if close else "see all keys with: eagle3 config show"
    return UsageError("unknown-name", f"unknown {kind} {name}", where=where, fix=fix)


def key_without_table(name: str, where: str) -> UsageError:
    """The error for a key that stands before the first table."""
    homes = [key for key in fields() if key.rpartition(".")[2] == name]
    close = homes[0] if homes else _renamed(name) or suggest(name, fields())
    fix = f"put it below [{close.partition('.')[0]}], as in {close}" if close else "see all keys: eagle3 config show"
    return UsageError("unknown-name", f"unknown key {name}, outside of a table", where=where, fix=fix)


def _renamed(name: str) -> str | None:
    table, dot, last = name.rpartition(".")
    if not dot:
        return TABLES.get(name)
    same = f"{TABLES.get(table, table)}.{last}"
    return RENAMED.get(last) or (same if same in fields() else None)


def suggest(name: str, candidates: Iterable[str]) -> str | None:
    """The candidate closest to ``name``; a bare field name also finds its table's key."""
    candidates = list(candidates)
    close = difflib.get_close_matches(name, candidates, n=1, cutoff=0.6)
    if close:
        return close[0]
    last = name.rpartition(".")[2]
    by_field = {candidate.rpartition(".")[2]: candidate for candidate in candidates}
    close = difflib.get_close_matches(last, by_field, n=1, cutoff=0.75)
    return by_field[close[0]] if close else None


def validation_errors(
    error: ValidationError, values: Mapping[str, Any], origins: Mapping[str, str]
) -> list[UsageError]:
    """One error for each key and each rule that ``error`` names."""
    errors: dict[str, UsageError] = {}  # one message a key, though a list may have several wrong items
    for detail in error.errors():
        key = ".".join(map(str, detail["loc"][:2]))
        if key in fields():
            value = values.get(key, detail["input"])
            origin = origins.get(key, DEFAULT)
            message = detail["msg"].removeprefix("Value error, ") if detail["type"] == "value_error" else None
            errors.setdefault(key, wrong_value(fields()[key], value, origin, message))
        else:
            errors.setdefault(key or detail["msg"], _wrong_combination(detail["msg"], origins))
    return list(errors.values())


def wrong_value(field: SettingsField, value: Any, origin: str, message: str | None = None) -> UsageError:
    """The error for a value; ``message`` is what the field's own check says of it."""
    shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    if isinstance(value, bool):
        shown = shown.lower()
    where = origin if origin.startswith("--") else f"{origin}: {field.key}"
    fix = None if message else _fix(field, value, shown, from_file=not origin.startswith("--"))
    return UsageError("invalid-value", message or f"{shown!r} is not {field.allowed}", where=where, fix=fix)


def _fix(field: SettingsField, value: Any, shown: str, *, from_file: bool) -> str | None:
    close = difflib.get_close_matches(shown, (*field.choices, *field.words), n=1)
    if close:
        return f"did you mean {close[0]}?"
    if field.many and not isinstance(value, (list, tuple)) and from_file:
        return f"write {field.name} = {literal([value])}"
    if field.type in (Path, str) and not isinstance(value, (str, list, tuple)):
        return f"write {field.name} = {literal(shown)}"
    if field.default not in (None, (), ""):
        return f"write {field.name} = {literal(field.default)}, its default, or leave it out" if from_file else None
    return None


def _wrong_combination(message: str, origins: Mapping[str, str]) -> UsageError:
    """A rule between fields; its message names the keys, and those set by the user are the place."""
    keys = re.findall(r"\b[a-z_]+\.[a-z_0-9]+\b", message)
    places = dict.fromkeys(origins[key] for key in keys if key in origins)
    return UsageError("invalid-value", message.removeprefix("Value error, "), where=", ".join(places) or None)
