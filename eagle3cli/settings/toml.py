"""Settings files: values with the line each stands on, and settings written as TOML."""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eagle3cli.errors import UsageError
from eagle3cli.settings.fields import SettingsField, fields_of_table, tables
from eagle3cli.settings.groups import groups_of_table
from eagle3cli.settings.tables import Settings


@dataclass(frozen=True)
class Entry:
    """One value of a settings file: ``key`` is ``("train", "batch_size")``; a table header has value None."""

    key: tuple[str, ...]
    value: Any
    line: int


def read_toml(path: Path) -> list[Entry]:
    """Read a settings file; raises UsageError with file and line where it is missing or broken."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else (error.strerror or str(error))
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.toml")], n=1, cutoff=0.8)
        fix = f"did you mean {path.parent / near[0]}?" if near else f"write one: eagle3 config init {path}"
        raise UsageError("settings-file", f"cannot read settings: {reason}", where=str(path), fix=fix) from error
    except UnicodeDecodeError as error:
        raise UsageError("settings-file", "not UTF-8 text", where=str(path), fix="save the file as UTF-8") from error
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise _broken(error, text, path) from error
    return list(_entries(text))


def _broken(error: tomllib.TOMLDecodeError, text: str, path: Path) -> UsageError:
    place = re.search(r"\(at line (\d+), column (\d+)\)", str(error))
    line = int(place[1]) if place else text.count("\n") + 1
    reason = re.sub(r" \(at .*\)$", "", str(error))
    lines = text.splitlines()
    shown = f": {lines[line - 1].strip()}" if 0 < line <= len(lines) and lines[line - 1].strip() else ""
    return UsageError(
        "settings-file",
        f"broken TOML ({reason[0].lower()}{reason[1:]}){shown}",
        where=f"{path}:{line}",
        fix=_fix(lines, line),
    )


def _fix(lines: list[str], line: int) -> str:
    """How to fix the line that TOML stumbled over (counted from 1)."""
    text = lines[line - 1].strip() if 0 < line <= len(lines) else ""
    earlier = [number for number, other in enumerate(lines[: line - 1], 1) if _start(other) == _start(text) != ""]
    if text.startswith("[") and earlier:
        return f"{text} stands on line {earlier[-1]} already: move its keys there"
    bare = re.fullmatch(r"([\w.-]+)\s*=\s*([A-Za-z./~][^\s\"'\[\]{}#]*)(\s*#.*)?", text)
    if bare:
        return f'text needs quotes: {bare[1]} = "{bare[2]}"'
    if earlier and "=" in text:
        return f"{_start(text)} is set on line {earlier[-1]} already: keep one of the two"
    return 'write key = value; text needs quotes ("text"), lists brackets ([1, 2]), a table its own line ([train])'


def _start(line: str) -> str:
    return line.strip() if line.strip().startswith("[") else line.partition("=")[0].strip()


def _entries(text: str) -> Iterator[Entry]:
    """Split a valid file into statements, each parsed by itself so that its line is known."""
    table: tuple[str, ...] = ()
    lines = text.split("\n")
    start = 0
    while start < len(lines):
        end = start + 1
        while True:
            try:
                parsed = tomllib.loads("\n".join(lines[start:end]))
                break
            except tomllib.TOMLDecodeError:
                if end >= len(lines):
                    return
                end += 1
        if lines[start].lstrip().startswith("["):
            table = _header(parsed)
            yield Entry(table, None, start + 1)
        else:
            for key, value in _leaves(parsed, depth=2 - len(table)):
                yield Entry(table + key, value, start + 1)
        start = end


def _header(parsed: dict[str, Any]) -> tuple[str, ...]:
    key: list[str] = []
    value: Any = parsed
    while isinstance(value, dict) and value:
        name, value = next(iter(value.items()))
        key.append(name)
    return tuple(key)


def _leaves(value: dict[str, Any], depth: int) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, inner in value.items():
        if isinstance(inner, dict) and depth > 1:
            yield from (((name, *key), leaf) for key, leaf in _leaves(inner, depth - 1))
        else:
            yield (name,), inner


def literal(value: Any) -> str:
    """A value as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(literal, value)) + "]"
    if isinstance(value, (int, float)):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def to_toml(settings: Settings) -> str:
    """All settings as a TOML file that gives the same settings when read; unset fields are comments."""
    parts = []
    for table in tables():
        parts.append(f"[{table}]")
        for field in fields_of_table(table):
            value = field.value(settings)
            parts.append(f"# {field.name} is not set" if value is None else f"{field.name} = {literal(value)}")
        parts.append("")
    return "\n".join(parts)


def commented_toml(values: Mapping[str, Any] | None = None, head: str = "") -> str:
    """A settings file in which every field stands as a comment, with its help and its default.

    ``values`` (by ``table.key``) are set; ``head`` are lines before all others.
    """
    parts = [
        "# Settings of eagle3: remove the # before a line to set it. Flags and --set win over this file.",
        head,
        "",
    ]
    for table, summary in tables().items():
        parts += [f"# {summary}", f"[{table}]"]
        for title, members in groups_of_table(table).items():
            parts += [f"# --- {title} ---", ""]
            for field in members:
                parts += [f"# {field.help} ({field.allowed})", _example_line(field, values or {}), ""]
    return "\n".join(parts).rstrip("\n") + "\n"


def _example_line(field: SettingsField, values: Mapping[str, Any]) -> str:
    if field.key in values:
        return f"{field.name} = {literal(values[field.key])}"
    if field.default is None:
        return f"# {field.name} = ..."
    return f"# {field.name} = {literal(field.default)}"
