"""The JSON Schema of a settings file, for editors that complete and check TOML."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from eagle3cli.settings.fields import SettingsField, tables
from eagle3cli.settings.groups import groups_of_table
from eagle3cli.settings.tables import Settings

GROUPS = "x-groups"
"""The keys of a table by the group they stand in; they follow in this order."""
FILE = "eagle3.schema.json"
TYPES = {int: "integer", float: "number", bool: "boolean"}
BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum"}


def json_schema() -> dict[str, Any]:
    """Tables, keys, types, choices, bounds, defaults and help of every setting."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "Settings of eagle3",
        "type": "object",
        "additionalProperties": False,
        "properties": {table: _table(table, summary) for table, summary in tables().items()},
    }


def _table(table: str, summary: str) -> dict[str, Any]:
    groups = groups_of_table(table)
    keys = {field.name: _field(field) for members in groups.values() for field in members}
    named = {title: [field.name for field in members] for title, members in groups.items()}
    described = {"type": "object", "description": summary, GROUPS: named}
    return {**described, "additionalProperties": False, "properties": keys}


def _field(field: SettingsField) -> dict[str, Any]:
    schema: dict[str, Any] = {"description": field.help}
    one = _one(field)
    if not field.many:
        schema |= one
    elif _takes(field, "x"):  # one value may stand without brackets
        schema["anyOf"] = [{"type": "array", "items": one}, one]
    else:
        schema |= {"type": "array", "items": one}
    if field.default is not None:
        schema["default"] = _plain(field.default)
    return schema


def _one(field: SettingsField) -> dict[str, Any]:
    """The schema of one value."""
    if field.choices:
        return {"enum": list(field.choices)}
    kind: Any = TYPES.get(field.type, "string")
    if kind == "string" and _takes(field, [1] if field.many else 1):
        kind = ["string", "integer"]
    bounds = {word: field.bound(name) for name, word in BOUNDS.items() if field.bound(name) is not None}
    one = {"type": kind, **({} if field.many else bounds)}
    return {"anyOf": [one, {"enum": list(field.words)}]} if field.words else one


def _takes(field: SettingsField, value: object) -> bool:
    try:
        Settings.model_validate({field.table: {field.name: value}})
    except ValidationError:
        return False
    return True


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, (bool, int, float)) else str(value)
