"""What may follow a command's name: its flags, its arguments and its actions."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from eagle3cli.cli.command import COMMON_FLAGS, DRY_RUN_HELP, Command, fields_of
from eagle3cli.settings.fields import SettingsField

if TYPE_CHECKING:
    import typer

HELP = "Show what is set in this command's common case."
HELP_ALL = "Show every option of this command."


@dataclass(frozen=True)
class Flag:
    """A flag: its names, the usual one first, and what its values are (see values.py); "" for a switch."""

    names: tuple[str, ...]
    help: str
    values: str = ""
    type: Any = str
    many: bool = False
    """Whether several values may follow one flag."""

    @property
    def repeats(self) -> bool:
        """Whether it may stand more than once."""
        return self.many or self.values == "config"


@dataclass(frozen=True)
class Argument:
    """A word without a flag; the last argument may take any number of words."""

    values: str
    many: bool = False


@dataclass(frozen=True)
class Syntax:
    """All of it; ``actions`` are the subcommands with a line of help each."""

    flags: tuple[Flag, ...]
    arguments: tuple[Argument, ...]
    actions: dict[str, str]

    def flag(self, name: str) -> Flag | None:
        """The flag of this name."""
        return next((flag for flag in self.flags if name in flag.names), None)


def syntax_of(module: ModuleType, argv: list[str]) -> tuple[Syntax, list[str]]:
    """The syntax of a command module, or of the action that ``argv`` begins with, and the words after that action."""
    if hasattr(module, "app"):
        return _app_syntax(module.app, argv)
    command: Command = module.COMMAND
    action = next((action for action in command.actions if argv[:1] == [action.name]), None)
    return _command_syntax(action or command), argv[1:] if action else argv


def _command_syntax(command: Command) -> Syntax:
    flags, arguments = fields_of(command)
    takes_recipe = command.recipe or any(action.recipe for action in command.actions)  # eagle3 plan RECIPE, too
    dry_run = [Flag(("--dry-run",), DRY_RUN_HELP)] if command.plan is not None else []
    return Syntax(
        (*map(_flag, flags), *dry_run, *_common_flags()),
        (*([Argument("recipe")] if takes_recipe else []), *(Argument(field.key, field.many) for field in arguments)),
        {action.name: action.summary for action in command.actions},
    )


def _flag(field: SettingsField) -> Flag:
    if field.type is bool:
        opposites = tuple(f"--no-{name.removeprefix('--')}" for name in field.flags)
        return Flag(opposites + field.flags if field.default else field.flags + opposites, field.help)
    return Flag(field.flags, field.help, field.key, field.type, field.many)


def _common_flags() -> Iterator[Flag]:
    for name, text in COMMON_FLAGS.items():
        yield Flag((name,), text, name[2:] if name in ("--config", "--set") else "", many=name == "--set")
    yield Flag(("--help", "-h"), HELP)
    yield Flag(("--help-all",), HELP_ALL)


def _app_syntax(app: typer.Typer, argv: list[str]) -> tuple[Syntax, list[str]]:
    """The same for a command whose subcommands are written for Typer by hand."""
    functions = {
        info.name or info.callback.__name__: info.callback for info in app.registered_commands if info.callback
    }
    if argv and argv[0] in functions:
        return _function_syntax(functions[argv[0]]), argv[1:]
    actions = {name: inspect.getdoc(function) or "" for name, function in functions.items()}
    return Syntax((Flag(("--help",), HELP),), (), actions), argv


def _function_syntax(function: Any) -> Syntax:
    flags: list[Flag] = []
    arguments: list[Argument] = []
    common = {flag.names[0]: flag for flag in _common_flags()}
    for annotation in typing.get_type_hints(function, include_extras=True).values():
        if typing.get_origin(annotation) is not typing.Annotated:
            continue
        kind, parameter = typing.get_args(annotation)
        # Typer keeps the first name as the default.
        declared = (parameter.default, *(getattr(parameter, "param_decls", None) or ()))
        names = tuple(name for name in declared if isinstance(name, str) and name.startswith("-"))
        if names:
            flags.append(common.get(names[0]) or Flag(names, parameter.help or "", "" if kind is bool else names[0]))
        else:
            arguments.append(Argument(f"{function.__name__} {parameter.metavar}", "list" in str(kind)))
    return Syntax((*flags, common["--help"]), tuple(arguments), {})
