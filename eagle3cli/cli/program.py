"""The program as Typer sees it: one command line, for which only the named command's module is imported."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from eagle3cli.cli import options
from eagle3cli.cli.argv import normalize, resolve, spread
from eagle3cli.cli.command import fields_of
from eagle3cli.errors import UsageError
from eagle3cli.settings.fields import fields
from eagle3cli.settings.renamed import GONE, RENAMED

if TYPE_CHECKING:
    from eagle3cli.cli.command import Command
    from eagle3cli.cli.command_spec import CommandSpec


def run(typed: Sequence[str], table: Sequence[CommandSpec], summary: str) -> int:
    """Run one command line; returns its exit code. Raises UsageError for what Typer refuses."""
    try:
        app, ready = build(typed, table, summary)
        code = app(args=ready, prog_name="eagle3", standalone_mode=False)
    except typer.TyperException as error:
        raise _usage(error, typed, table) from error
    except typer.Abort as error:
        raise KeyboardInterrupt from error
    return code if isinstance(code, int) else 0


def _nothing() -> None:
    """Stands for a command that was not named, so that its module need not be imported."""


def build(typed: Sequence[str], table: Sequence[CommandSpec], summary: str) -> tuple[typer.Typer, list[str]]:
    """The program for one command line, and that line made ready for it."""
    named = next((word for word in typed if not word.startswith("-")), None)
    typed = normalize(typed) if named == "plan" else typed
    app = typer.Typer(help=summary, pretty_exceptions_enable=False, rich_markup_mode=None, add_completion=False)
    app.callback()(_nothing)
    ready = list(typed)
    for line in table:
        if line.name != named:
            app.command(line.name, help=line.summary)(_nothing)
            continue
        module = importlib.import_module(line.module)
        if hasattr(module, "app"):
            ready = [*spread(typed, None), *(["--help"] if typed == [line.name] else [])]
            app.add_typer(module.app, name=line.name, help=line.summary)
            continue
        ready = spread(typed, resolve(typed, module.COMMAND))
        _add(app, module.COMMAND)
    return app, ready


def _add(app: typer.Typer, command: Command) -> None:
    """Add a command, with its actions where it has any."""
    told: dict[str, Any] = {"help": command.summary, "epilog": options.epilog(command.examples)}
    if not command.actions:
        app.command(command.name, **told)(options.function(command))
        return
    group = typer.Typer(rich_markup_mode=None)
    group.callback(invoke_without_command=True, **told)(options.function(command))
    for action in command.actions:
        _add(group, action)
    app.add_typer(group, name=command.name)


def _usage(error: typer.TyperException, typed: Sequence[str], table: Sequence[CommandSpec]) -> UsageError:
    """What Typer refused, in the words of our own errors."""
    line = next((line for word in typed for line in table if word == line.name), None)
    message = error.format_message().strip().rstrip(".")
    hint = f"see: eagle3 {line.name + ' ' if line else ''}--help"
    suggestion = re.search(r"\(Possible options: ([^)]*)\)|Did you mean (.*)\?", message)
    if suggestion:
        message = message[: suggestion.start()].strip().rstrip(".")
        hint = f"did you mean {suggestion[1] or suggestion[2]}?".replace("'", "")
    flag = re.search(r"(--[\w-]+)", message)
    if flag and "No such option" in message:
        hint = _known_elsewhere(flag[1], line, table) or hint
    elif flag and "requires an argument" in message:
        hint = f"write {flag[1]} VALUE; {hint}"
    return UsageError(message[:1].lower() + message[1:], fix=hint)


def _known_elsewhere(flag: str, line: CommandSpec | None, table: Sequence[CommandSpec]) -> str | None:
    """What a flag is called here that another program has, or whose flag it is."""
    name = flag.removeprefix("--").replace("-", "_")
    if name in GONE:
        return GONE[name]
    field = fields().get(RENAMED.get(name, "")) or next((f for f in fields().values() if flag in f.flags), None)
    if field is None or line is None:
        return None
    commands = {line.name: getattr(importlib.import_module(line.module), "COMMAND", None) for line in table}
    owners = [name for name, command in commands.items() if command and field in fields_of(command)[0]]
    if line.name in owners:
        return f"it is {field.flags[0]} here"
    return f"{field.flags[0]} is for eagle3 {', '.join(owners)}" if owners else f"use --set {field.key}=VALUE"
