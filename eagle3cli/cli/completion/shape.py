"""What a command line may hold after a command's name: its flags, its positions and its actions."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from eagle3cli.cli.command import COMMON, DRY_RUN, Command, fields_of
from eagle3cli.settings.fields import SettingsField

if TYPE_CHECKING:
    import typer

HELP = "Show this command's help."


@dataclass(frozen=True)
class Flag:
    """A flag: its names, the usual one first, and what its values are (see values.py); "" for a switch."""

    names: tuple[str, ...]
    help: str
    values: str = ""
    type: Any = str
    many: bool = False
    """Whether several values may follow one flag."""
    repeats: bool = False


@dataclass(frozen=True)
class Position:
    """A word without a flag; the last position may take any number of words."""

    values: str
    many: bool = False


@dataclass(frozen=True)
class Shape:
    """All of it; ``actions`` are the names of subcommands with a line of help each."""

    flags: tuple[Flag, ...]
    positions: tuple[Position, ...] = ()
    actions: tuple[tuple[str, str], ...] = ()

    def flag(self, name: str) -> Flag | None:
        """The flag of this name."""
        return next((flag for flag in self.flags if name in flag.names), None)


def shape(module: ModuleType, words: list[str]) -> tuple[Shape, list[str]]:
    """The shape of a command module, or of the action that ``words`` begin with, and the words after that action."""
    if hasattr(module, "app"):
        return _app_shape(module.app, words)
    command: Command = module.COMMAND
    action = next((action for action in command.actions if words[:1] == [action.name]), None)
    return _command_shape(action or command), words[1:] if action else words


def _command_shape(command: Command) -> Shape:
    flags, arguments = fields_of(command)
    runs_recipes = command.recipe or any(action.recipe for action in command.actions)  # eagle3 plan RECIPE, too
    positions = [Position("recipe")] if runs_recipes else []
    positions += [Position(field.key, field.many) for field in arguments]
    actions = tuple((action.name, action.summary) for action in command.actions)
    dry_run = [Flag(("--dry-run",), DRY_RUN)] if command.plan is not None else []
    return Shape((*map(_flag, flags), *dry_run, *_common()), tuple(positions), actions)


def _flag(field: SettingsField) -> Flag:
    if field.type is bool:
        opposites = [f"--no-{name.removeprefix('--')}" for name in field.flags]
        names = [*opposites, *field.flags] if field.default else [*field.flags, *opposites]
        return Flag(tuple(names), field.help)
    return Flag(field.flags, field.help, field.key, field.type, field.many, field.many)


def _common() -> Iterator[Flag]:
    yield Flag(("--config",), COMMON["--config"], "config", repeats=True)
    yield Flag(("--set",), COMMON["--set"], "set", many=True, repeats=True)
    yield from (Flag((name,), COMMON[name]) for name in ("--json", "--debug"))
    yield Flag(("--help",), HELP)


def _app_shape(app: typer.Typer, words: list[str]) -> tuple[Shape, list[str]]:
    """The same for a command whose subcommands are written for Typer by hand."""
    known = {info.name or info.callback.__name__: info.callback for info in app.registered_commands if info.callback}
    if words[:1] and words[0] in known:
        return _function_shape(known[words[0]]), words[1:]
    told = tuple((name, inspect.getdoc(function) or "") for name, function in known.items())
    return Shape((Flag(("--help",), HELP),), (), told), words


def _function_shape(function: Any) -> Shape:
    flags: list[Flag] = []
    positions: list[Position] = []
    common = {flag.names[0]: flag for flag in _common()}
    for annotation in typing.get_type_hints(function, include_extras=True).values():
        if typing.get_origin(annotation) is not typing.Annotated:
            continue
        kind, told = typing.get_args(annotation)
        declared = (told.default, *(getattr(told, "param_decls", None) or ()))  # a first name stands as the default
        names = tuple(name for name in declared if isinstance(name, str) and name.startswith("-"))
        if not names:  # an argument
            positions.append(Position(f"{function.__name__} {told.metavar}", "list" in str(kind)))
        else:
            flags.append(common.get(names[0]) or Flag(names, told.help or "", "" if kind is bool else names[0]))
    return Shape((*flags, common["--help"]), tuple(positions))
