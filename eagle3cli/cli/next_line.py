"""The line that goes on where a command ended: the next command with what its settings would not say by themselves."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from eagle3cli.cli.chain import INPUTS, with_inputs
from eagle3cli.cli.command import Command, fields_of
from eagle3cli.settings.argv import to_argv
from eagle3cli.settings.fields import fields
from eagle3cli.settings.load import FOLDER_FILE, Loaded, load
from eagle3cli.settings.tables import Settings
from eagle3cli.settings.toml import literal

OWN = ("overwrite", "resume", "retry_errors")
"""Names of settings that were meant for one command line."""


def next_line(loaded: Loaded, name: str, values: Mapping[str, Any]) -> str:
    """``eagle3 NAME`` as it has to be typed after a command with the settings ``loaded``, to go on with its results.

    It repeats the settings files and what was typed, as far as that command reads it, and says ``values`` (by key)
    where the command would not find them by itself.
    """
    flags, arguments = fields_of(_command(name))
    of_next = [field.key for field in (*arguments, *flags)]
    typed = {key: fields()[key].value(loaded.settings) for key in loaded.typed if key.partition(".")[2] not in OWN}
    requested = {key: _of_its_type(key, value) for key, value in values.items() if value not in (None, "")}
    requested = {**requested, **{key: value for key, value in typed.items() if key in of_next and key not in requested}}
    files = [path for path in loaded.files if path != FOLDER_FILE]
    by_files = load(files).settings
    without_inputs = {key: value for key, value in requested.items() if key not in INPUTS.get(name, ())}
    settings_then = with_inputs(name, _with(by_files, without_inputs))[0]
    words = [word for path in files for word in ("--config", str(path))]
    for key, value in requested.items():
        field = fields()[key]
        reference = settings_then if key in INPUTS.get(name, ()) else by_files
        if value == field.value(reference):
            continue
        if key not in of_next or value == field.default:  # no flag says a default
            words += ["--set", f"{key}={_assigned(value)}"]
        else:
            words += to_argv(_with(Settings(), {key: value}), [key])
    return shlex.join(["eagle3", name, *words])


def _command(name: str) -> Command:
    command: Command = import_module(f"eagle3cli.commands.{name.replace('-', '_')}").COMMAND
    return command


def _with(settings: Settings, values: Mapping[str, Any]) -> Settings:
    for key, value in values.items():
        table, _, name = key.partition(".")
        settings = settings.updated(table, **{name: value})
    return settings


def _of_its_type(key: str, value: Any) -> Any:
    """A value as the settings hold it, also where it came through JSON."""
    field = fields()[key]
    if isinstance(value, (list, tuple)):
        return tuple(map(field.type, value)) if field.many else value
    return Path(value) if field.type is Path and value is not None else value


def _assigned(value: Any) -> str:
    """A value as ``--set`` reads it."""
    if value is None:
        return "none"
    return literal(value) if isinstance(value, (bool, tuple)) else str(value)
