"""Settings from their layers: defaults < eagle3.toml < --config files < --set < flags, each value with its origin."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from eagle3cli.errors import UsageError
from eagle3cli.settings.errors import (
    DEFAULT,
    combine,
    key_without_table,
    unknown_key,
    validation_errors,
    wrong_value,
)
from eagle3cli.settings.fields import SettingsField, fields, select, tables
from eagle3cli.settings.tables import Settings
from eagle3cli.settings.toml import read_toml

FOLDER_FILE = Path("eagle3.toml")
INPUTS = (
    *("data.train_path", "data.eval_path", "data.train_hidden_states_path", "data.eval_hidden_states_path"),
    *("prepare.data_path", "regenerate.input_path", "merge.input_dir", "view.path", "bench.benchmark_dir"),
)
"""Settings that name files to be read."""


@dataclass(frozen=True)
class FolderFile:
    """What a recipe does not say and ``eagle3.toml`` does, by key with its line: what was taken, and what was not."""

    taken: Mapping[str, str]
    left: Mapping[str, str]
    """Paths: a recipe reads and writes where it says itself."""


@dataclass(frozen=True)
class Loaded:
    """Settings, and where each value came from (``eagle3.toml:3``, ``--set``, a flag or ``default``)."""

    settings: Settings
    origins: Mapping[str, str]
    files: tuple[Path, ...]
    beside_recipe: FolderFile | None = None
    """What came of ``eagle3.toml`` where a recipe was named."""

    @property
    def typed(self) -> list[str]:
        """The keys of what was given on the command line."""
        return [key for key, origin in self.origins.items() if ":" not in origin and origin != DEFAULT]

    def origin(self, key: str) -> str:
        """Where the value of ``table.name`` came from."""
        return self.origins.get(key, DEFAULT)

    def rows(self, patterns: Sequence[str]) -> list[tuple[str, Any, str]]:
        """Key, value and origin of the fields of these tables or keys. Raises UsageError for an unknown one."""
        selected: list[SettingsField] = []
        for pattern in patterns:
            try:
                selected += select(pattern if "." in pattern else f"{pattern}.*")
            except KeyError as error:
                raise unknown_key(pattern, "KEY") from error
        return [(field.key, field.value(self.settings), self.origin(field.key)) for field in selected]

    def missing_inputs(self) -> Iterator[tuple[str, str, Path]]:
        """Where it was set, the key and the path of each given input that does not exist (yet)."""
        for key in INPUTS:
            value = fields()[key].value(self.settings)
            for path in value if isinstance(value, tuple) else (value,):
                if key in self.origins and path is not None and not path.exists():
                    yield self.origin(key), key, path


@dataclass
class _Layers:
    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    errors: list[UsageError] = field(default_factory=list)

    def put(self, key: str, value: Any, origin: str) -> None:
        self.values[key] = value
        self.origins[key] = origin

    def discard(self, keys: Sequence[str]) -> None:
        for key in keys:
            del self.values[key]
            del self.origins[key]


def load(
    config: Sequence[Path] = (),
    assignments: Sequence[str] = (),
    flags: Mapping[str, tuple[str, Any]] | None = None,
    *,
    recipe: Path | None = None,
) -> Loaded:
    """Build the settings of one command.

    ``config`` are settings files, later ones win; ``assignments`` are ``table.key=value``; ``flags`` maps
    ``table.key`` to (flag as typed, value). The file ``eagle3.toml`` of the current folder is read first if it exists;
    before a ``recipe`` its paths are left out. Raises UsageError that names each wrong value's place.
    """
    folder_file = [FOLDER_FILE] if FOLDER_FILE.is_file() else []
    if folder_file and recipe is not None and FOLDER_FILE.samefile(recipe):
        folder_file = []
    layers = _Layers()
    for path in folder_file:
        _add_file(layers, path)
    below = dict(layers.origins)
    if recipe is not None:
        layers.discard([key for key, value in layers.values.items() if _is_path(fields()[key], value)])
    files = [*folder_file, *([recipe] if recipe is not None else []), *config]
    for path in files[len(folder_file) :]:
        _add_file(layers, path)
    for assignment in assignments:
        _add_assignment(layers, assignment)
    for key, (flag, value) in (flags or {}).items():
        layers.put(key, value, flag)
    beside_recipe = None
    if recipe is not None and folder_file:
        taken = {key: where for key, where in below.items() if layers.origins.get(key) == where}
        beside_recipe = FolderFile(taken, {key: below[key] for key in below if key not in layers.origins})
    return Loaded(_validate(layers), layers.origins, tuple(files), beside_recipe)


def _is_path(field: SettingsField, value: Any) -> bool:
    """Whether a value is a path: by its field, or a text that is one here (a target's folder, a source's file)."""
    texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
    return field.type is Path or any(map(_is_path_text, texts))


def _is_path_text(text: str) -> bool:
    parts = {text, text.rpartition(":")[0], text.removeprefix("@"), text.partition("@")[2].rpartition(":")[0]}
    return text.startswith(("/", "./", "../", "~")) or any(part and Path(part).exists() for part in parts)


def _add_file(layers: _Layers, path: Path) -> None:
    skipped: tuple[str, ...] = ()  # what stands in a table that does not exist is not reported one by one
    try:
        entries = read_toml(path)
    except UsageError as error:  # told together with what is wrong in the files beside it
        layers.errors.append(error)
        return
    for entry in entries:
        where = f"{path}:{entry.line}"
        table, *rest = entry.key
        key = ".".join(entry.key)
        if skipped and entry.key[: len(skipped)] == skipped:
            continue
        if table not in tables() and not rest and entry.value is not None:
            layers.errors.append(key_without_table(table, where))
        elif table not in tables():
            skipped = (table,)
            layers.errors.append(unknown_key(table, where))
        elif not rest and entry.value is not None:
            fix = f"write [{table}] on a line of its own, its keys below"
            layers.errors.append(UsageError("invalid-value", f"{table} is a table, not a value", where=where, fix=fix))
        elif rest and key not in fields():
            skipped = entry.key if entry.value is None else ()
            layers.errors.append(unknown_key(key, where))
        elif rest:
            if key in layers.values:  # a later file must not hide what is wrong in an earlier one
                layers.errors += _value_errors(key, layers.values[key], layers.origins[key])
            layers.put(key, entry.value, where)


def _value_errors(key: str, value: Any, origin: str) -> list[UsageError]:
    """What is wrong with one value, whatever stands beside it."""
    table, _, name = key.partition(".")
    try:
        Settings.model_validate({table: {name: value}})
    except ValidationError as error:
        details = [detail for detail in error.errors() if detail["loc"][:2] == (table, name)]
        return validation_errors(error, {key: value}, {key: origin})[: len(details)]
    return []


def _add_assignment(layers: _Layers, assignment: str) -> None:
    key, equals, text = assignment.partition("=")
    key = key.strip()
    if not equals or "." not in key:
        raise UsageError(
            "invalid-value", f"cannot read {assignment!r}", where="--set", fix="write --set table.key=value"
        )
    if key in fields():
        layers.put(key, parse_value(fields()[key], text.strip()), f"--set {key}")
    else:
        layers.errors.append(unknown_key(key, "--set"))


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


def _validate(layers: _Layers) -> Settings:
    nested: dict[str, dict[str, Any]] = {}
    errors = list(layers.errors)
    for key, value in layers.values.items():
        table, name = key.split(".")
        if isinstance(value, bool) and fields()[key].type in (int, float):  # pydantic would read true as 1
            errors.append(wrong_value(fields()[key], value, layers.origins[key]))
            continue
        nested.setdefault(table, {})[name] = value
    try:
        settings = Settings.model_validate(nested)
    except ValidationError as error:
        errors += validation_errors(error, layers.values, layers.origins)
    else:
        if not errors:
            return settings
    raise combine(errors)
