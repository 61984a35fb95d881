"""The program as Typer sees it: one command line, for which only the named command's module is imported."""

from __future__ import annotations

import importlib
import re
from collections.abc import Sequence
from typing import Any

import typer

from eagle3cli.cli import options
from eagle3cli.cli.argv import normalize, repeat_flags, resolve
from eagle3cli.cli.command import Command, fields_of
from eagle3cli.cli.command_spec import CommandSpec
from eagle3cli.cli.help import ALL, help_of, help_of_app, wanted_help
from eagle3cli.console.out import Out
from eagle3cli.errors import UsageError
from eagle3cli.settings.fields import fields
from eagle3cli.settings.renamed import GONE, RENAMED


def run(argv: Sequence[str], commands: Sequence[CommandSpec], summary: str) -> int:
    """Run one command line; returns its exit code. Raises UsageError for what Typer refuses."""
    if page := _help(argv, commands):
        Out().print(page)
        return 0
    try:
        app, args = build(argv, commands, summary)
        code = app(args=args, prog_name="eagle3", standalone_mode=False)
    except typer.TyperException as error:
        raise _usage_error(error, argv, commands) from error
    except typer.Abort as error:
        raise KeyboardInterrupt from error
    return code if isinstance(code, int) else 0


def _help(argv: Sequence[str], commands: Sequence[CommandSpec]) -> str | None:
    """The help of the command, or of its action, that the command line names; None where it asks for none."""
    flag = wanted_help(argv)
    if flag is None and len(argv) > 1:
        return None
    named = next((word for word in argv if not word.startswith("-")), None)
    args = normalize(argv) if named == "plan" else list(argv)
    spec = next((spec for spec in commands if spec.name == named), None)
    if spec is None:
        return None
    module = importlib.import_module(spec.module)
    if flag is None and not hasattr(module, "app"):  # that alone asks for one of its actions
        return None
    if hasattr(module, "app"):
        page = help_of_app(module, f"eagle3 {spec.name}", spec.summary, args)
    else:
        chosen = resolve(args, module.COMMAND)
        usage = f"eagle3 {spec.name}" if chosen is module.COMMAND else f"eagle3 {spec.name} {chosen.name}"
        page = help_of(chosen, usage, everything=flag == ALL)
    return page.text(colour=Out().colour)


def _not_imported() -> None:
    """Stands for a command that was not named, so that its module need not be imported."""


def build(argv: Sequence[str], commands: Sequence[CommandSpec], summary: str) -> tuple[typer.Typer, list[str]]:
    """The program for one command line, and that line made ready for it."""
    named = next((word for word in argv if not word.startswith("-")), None)
    args = normalize(argv) if named == "plan" else list(argv)
    app = typer.Typer(help=summary, pretty_exceptions_enable=False, rich_markup_mode=None, add_completion=False)
    app.callback()(_not_imported)
    for spec in commands:
        if spec.name != named:
            app.command(spec.name, help=spec.summary)(_not_imported)
            continue
        module = importlib.import_module(spec.module)
        if hasattr(module, "app"):
            args = repeat_flags(args, None)
            app.add_typer(module.app, name=spec.name, help=spec.summary)
        else:
            args = repeat_flags(args, resolve(args, module.COMMAND))
            _add(app, module.COMMAND)
    return app, args


def _add(app: typer.Typer, command: Command) -> None:
    """Add a command, with its actions where it has any."""
    texts: dict[str, Any] = {"help": command.summary, "epilog": options.epilog(command.examples)}
    if not command.actions:
        app.command(command.name, **texts)(options.function(command))
        return
    group = typer.Typer(rich_markup_mode=None)
    group.callback(invoke_without_command=True, **texts)(options.function(command))
    for action in command.actions:
        _add(group, action)
    app.add_typer(group, name=command.name)


def _usage_error(error: typer.TyperException, argv: Sequence[str], commands: Sequence[CommandSpec]) -> UsageError:
    """What Typer refused, in the words of our own errors."""
    spec = next((spec for word in argv for spec in commands if word == spec.name), None)
    message = error.format_message().strip().rstrip(".")
    fix = f"see: eagle3 {spec.name + ' ' if spec else ''}--help"
    suggestion = re.search(r"\(Possible options: ([^)]*)\)|Did you mean (.*)\?", message)
    if suggestion:
        message = message[: suggestion.start()].strip().rstrip(".")
        fix = f"did you mean {suggestion[1] or suggestion[2]}?".replace("'", "")
    flag = re.search(r"(--[\w-]+)", message)
    if flag and "No such option" in message:
        fix = _fix_unknown_flag(flag[1], spec, argv, commands) or fix
    elif flag and "requires an argument" in message:
        fix = f"write {flag[1]} VALUE; {fix}"
    return UsageError("command-line", message[:1].lower() + message[1:], fix=fix)


def _fix_unknown_flag(
    flag: str, spec: CommandSpec | None, argv: Sequence[str], commands: Sequence[CommandSpec]
) -> str | None:
    """What a flag is called here that another program has, or whose flag it is."""
    name = flag.removeprefix("--").replace("-", "_")
    if name in GONE:
        return GONE[name]
    field = fields().get(RENAMED.get(name, "")) or next((f for f in fields().values() if flag in f.flags), None)
    if field is None or spec is None:
        return None
    modules = {spec.name: importlib.import_module(spec.module) for spec in commands}
    owners = [
        n for n, module in modules.items() if hasattr(module, "COMMAND") and field in fields_of(module.COMMAND)[0]
    ]
    if spec.name in owners:
        action = resolve(normalize(argv) if spec.name == "plan" else argv, modules[spec.name].COMMAND)
        is_here = field in fields_of(action)[0]
        return f"it is {field.flags[0]} here" if is_here else f"use --set {field.key}=VALUE"
    return f"{field.flags[0]} is for eagle3 {', '.join(owners)}" if owners else f"use --set {field.key}=VALUE"
