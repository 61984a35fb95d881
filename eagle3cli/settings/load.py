"""Settings from their layers: defaults < eagle3.toml < --config files < --set < flags, each value with its origin."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from eagle3cli.errors import UsageError
from eagle3cli.settings.fields import SettingsField, fields, tables
from eagle3cli.settings.tables import Settings
from eagle3cli.settings.toml import read_toml

FOLDER_FILE = Path("eagle3.toml")
DEFAULT = "default"


@dataclass(frozen=True)
class Loaded:
    """Settings, and where each value came from (``eagle3.toml:3``, ``--set``, a flag or ``default``)."""

    settings: Settings
    origins: Mapping[str, str]
    files: tuple[Path, ...]

    def origin(self, key: str) -> str:
        """Where the value of ``table.name`` came from."""
        return self.origins.get(key, DEFAULT)


@dataclass
class _Layers:
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)

    def put(self, key: str, value: Any, origin: str) -> None:
        self.values[key], self.origins[key] = value, origin


def load(
    config: Sequence[Path] = (), assignments: Sequence[str] = (), flags: Mapping[str, tuple[str, Any]] | None = None
) -> Loaded:
    """Build the settings of one command.

    ``config`` are settings files, later ones win; ``assignments`` are ``table.key=value``; ``flags`` maps
    ``table.key`` to (flag as typed, value). The file ``eagle3.toml`` of the current folder is read first if it exists.
    Raises UsageError that names each wrong value's place.
    """
    files = (*([FOLDER_FILE] if FOLDER_FILE.is_file() else []), *config)
    layers = _Layers()
    for path in files:
        _add_file(layers, path)
    for assignment in assignments:
        _add_assignment(layers, assignment)
    for key, (flag, value) in (flags or {}).items():
        layers.put(key, value, flag)
    return Loaded(_validate(layers), layers.origins, tuple(files))


def _add_file(layers: _Layers, path: Path) -> None:
    for entry in read_toml(path):
        where = f"{path}:{entry.line}"
        table, *rest = entry.key
        if table not in tables():
            raise _unknown(table, "table" if rest or entry.value is None else "key", tables(), where)
        if not rest:
            if entry.value is not None:
                fix = f"write [{table}] on a line of its own, its keys below"
                raise UsageError(f"{table} is a table, not a value", where=where, fix=fix)
            continue
        key = f"{table}.{rest[0]}"
        if key not in fields() or len(rest) > 1:
            raise _unknown(".".join(entry.key), "key", fields(), where)
        layers.put(key, entry.value, where)


def _add_assignment(layers: _Layers, assignment: str) -> None:
    key, equals, text = assignment.partition("=")
    key = key.strip()
    if not equals or "." not in key:
        raise UsageError(f"cannot read {assignment!r}", where="--set", fix="write --set table.key=value")
    if key not in fields():
        raise _unknown(key, "key", fields(), "--set")
    layers.put(key, parse_value(fields()[key], text.strip()), f"--set {key}")


def parse_value(field: SettingsField, text: str) -> Any:
    """Read what follows ``=`` of ``--set``: plain text, ``none`` for an optional field, a TOML list for a list."""
    if field.optional and text.lower() == "none":
        return None
    if text[:1] in "\"'[" and text:
        try:
            return tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            pass  # a text that merely begins like TOML; pydantic judges it below
    return [text] if field.many else text


def unknown_key(name: str, where: str) -> UsageError:
    """The error for a table or key that does not exist."""
    known = fields() if "." in name else tables()
    return _unknown(name, "key" if "." in name else "table", known, where)


def _unknown(name: str, kind: str, known: Iterable[str], where: str) -> UsageError:
    close = suggest(name, known)
    fix = f"did you mean {close}?" if close else "see all keys with: eagle3 config show"
    return UsageError(f"unknown {kind} {name}", where=where, fix=fix)


def suggest(name: str, known: Iterable[str]) -> str | None:
    """The known name closest to ``name``; a bare field name also finds its table's key."""
    names = list(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return close[0]
    last = name.rpartition(".")[2]
    by_field = {candidate.rpartition(".")[2]: candidate for candidate in names}
    close = difflib.get_close_matches(last, by_field, n=1, cutoff=0.75)
    return by_field[close[0]] if close else None


def _validate(layers: _Layers) -> Settings:
    nested: dict[str, dict[str, Any]] = {}
    wrong: list[UsageError] = []
    for key, value in layers.values.items():
        table, name = key.split(".")
        if isinstance(value, bool) and fields()[key].type in (int, float):  # pydantic would read true as 1
            wrong.append(_wrong_value(fields()[key], value, layers.origins[key]))
            continue
        nested.setdefault(table, {})[name] = value
    try:
        settings = Settings.model_validate(nested)
    except ValidationError as error:
        wrong += _explain(error, layers)
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        raise UsageError(f"{len(wrong)} settings are wrong\n" + "\n".join(str(each) for each in wrong))
    return settings


def _explain(error: ValidationError, layers: _Layers) -> list[UsageError]:
    wrong: dict[str, UsageError] = {}  # one message a key, though a list may have several wrong items
    for detail in error.errors():
        key = ".".join(map(str, detail["loc"][:2]))
        if key in fields():
            value = layers.values.get(key, detail["input"])
            origin = layers.origins.get(key, DEFAULT)
            said = detail["msg"].removeprefix("Value error, ") if detail["type"] == "value_error" else None
            wrong.setdefault(key, _wrong_value(fields()[key], value, origin, said))
        else:
            wrong.setdefault(key or detail["msg"], _wrong_combination(detail["msg"], layers))
    return list(wrong.values())


def _wrong_value(field: SettingsField, value: Any, origin: str, said: str | None = None) -> UsageError:
    """The error for a value; ``said`` is what the field's own check says of it."""
    shown = ", ".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
    if isinstance(value, bool):
        shown = shown.lower()
    name = origin if origin.startswith("--") else f"{origin}: {field.key}"
    close = difflib.get_close_matches(shown, field.choices, n=1)
    fix = f"did you mean {close[0]}?" if close else None
    return UsageError(said or f"{shown!r} is not {field.allowed}", where=name, fix=fix)


def _wrong_combination(message: str, layers: _Layers) -> UsageError:
    """A rule between fields; its message names the keys, of which the first one set by the user is the place."""
    named = [key for key in re.findall(r"\b[a-z_]+\.[a-z_0-9]+\b", message) if key in layers.origins]
    where = layers.origins[named[0]] if named else None
    return UsageError(message.removeprefix("Value error, "), where=where)
