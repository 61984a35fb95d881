"""A command's flags, generated from the settings tables, and the words of a command line made ready for Typer."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import typer

from eagle3cli.commands.command import Command
from eagle3cli.console.out import Out
from eagle3cli.errors import UsageError
from eagle3cli.settings.fields import SettingsField, select
from eagle3cli.settings.load import DEFAULT, load, suggest

CONFIG = typer.Option("--config", metavar="<path>", help="Settings file (TOML); repeatable, later ones win.")
SET = typer.Option("--set", metavar="<table.key=value>", help="One setting; repeatable.")
JSON = typer.Option("--json", help="One machine-readable result on stdout.")
DEBUG = typer.Option("--debug", help="Show the traceback of an error.")
Config = Annotated[list[Path] | None, CONFIG]
Set = Annotated[list[str] | None, SET]
Json = Annotated[bool, JSON]
Debug = Annotated[bool, DEBUG]

RECIPES = "eagle3cli.settings"


def recipes() -> dict[str, Path]:
    """The packaged recipes by name."""
    folder = Path(str(resources.files(RECIPES) / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def find_recipe(name: str) -> Path:
    """A packaged recipe's file, or the file that ``name`` is."""
    if name in recipes():
        return recipes()[name]
    if Path(name).is_file():
        return Path(name)
    close = suggest(name, recipes())
    fix = f"did you mean {close}?" if close else f"give a TOML file or one of: {', '.join(recipes())}"
    raise UsageError(f"no recipe or file {name}", where="RECIPE", fix=fix)


def fields_of(command: Command) -> tuple[list[SettingsField], list[SettingsField]]:
    """The fields of a command: those given as flags, and those given by position."""
    arguments = [field for pattern in command.arguments for field in select(pattern)]
    flags = [field for pattern in command.fields for field in select(pattern) if field not in arguments]
    owner: dict[str, str] = {}
    for field in flags:
        for flag in field.flags:
            if owner.setdefault(flag, field.key) != field.key:
                raise ValueError(f"eagle3 {command.name}: {flag} would set both {owner[flag]} and {field.key}")
    return list(dict.fromkeys(flags)), arguments


def function(command: Command) -> Callable[..., int]:
    """The function that Typer turns into the command: parses flags, loads the settings, runs."""
    flags, arguments = fields_of(command)

    def call(context: typer.Context, **given: Any) -> int:
        if context.invoked_subcommand is not None:
            _refuse_flags_before(context.invoked_subcommand, context, given)
            return 0
        typed: dict[str, tuple[str, Any]] = {}
        for field in (*arguments, *flags):
            source = context.get_parameter_source(_parameter(field))
            if source is not None and source.name == "COMMANDLINE":
                name = field.name.upper() if field in arguments else field.flags[0]
                typed[field.key] = (name, given[_parameter(field)])
        files = [find_recipe(given["recipe"])] if command.recipe and given["recipe"] else []
        loaded = load([*files, *(given["config"] or ())], given["set_"] or (), typed)
        settings = loaded.settings
        if files and loaded.origin("run.output_dir") == DEFAULT:  # each recipe has its own folder
            run = settings.run.model_copy(update={"output_dir": Path("runs") / files[0].stem})
            settings = settings.model_copy(update={"run": run})
        return command.run(settings, Out(json_wanted=given["json_"])) or 0

    parameters = list(_parameters(command, flags, arguments))
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    call.__doc__ = command.summary
    return call


def _refuse_flags_before(action: str, context: typer.Context, given: dict[str, Any]) -> None:
    """Flags before the name of an action would be read by nobody."""
    for name in given:
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            raise UsageError(f"flags stand before {action}", fix=f"put them after the word {action}")


def meant(words: Sequence[str], command: Command) -> Command:
    """The action of a command that these words name, else the command."""
    named = [word for word in words if not word.startswith("-")][1:2]
    return next((action for action in command.actions if [action.name] == named), command)


def _parameter(field: SettingsField) -> str:
    return f"{field.table}__{field.name}"


def _parameters(
    command: Command, flags: Sequence[SettingsField], arguments: Sequence[SettingsField]
) -> Iterator[inspect.Parameter]:
    def keyword(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
        return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)

    yield keyword("context", typer.Context, inspect.Parameter.empty)
    if command.recipe:
        text = f"A recipe ({', '.join(recipes())}) or a settings file."
        argument = typer.Argument(metavar="RECIPE", help=text, autocompletion=_words(tuple(recipes())))
        yield keyword("recipe", Annotated[str | None, argument])
    for field in arguments:
        argument = typer.Argument(metavar=field.name.upper(), help=field.help)
        shown = field.type if field.type is int else None  # the help of an argument shows its type as it is
        yield keyword(_parameter(field), Annotated[_type(field, shown), argument], _default(field))
    for field in flags:
        yield keyword(_parameter(field), Annotated[_type(field), _option(field)], _default(field))
    yield keyword("config", Config)
    yield keyword("set_", Set)
    yield keyword("json_", Json, False)
    yield keyword("debug", Debug, False)


def _type(field: SettingsField, shown: Any = None) -> Any:
    """What Typer parses; numbers and choices stay text, so that one place (the settings) judges every value."""
    one = shown or (field.type if field.type in (bool, Path) else str)
    return (list[one] if field.many else one) | None  # type: ignore[valid-type]


def _default(field: SettingsField) -> Any:
    if isinstance(field.default, tuple):
        return [str(value) for value in field.default] or None
    return field.default if field.type in (bool, Path) or field.default is None else str(field.default)


def _option(field: SettingsField) -> Any:
    names = list(field.flags)
    if field.type is bool:
        names = [f"{name}/--no-{name.removeprefix('--')}" for name in names]
    shown = field.default is not False and field.default not in ("", None, ())
    help_text = f"{field.help.rstrip('.')} ({field.bounds})." if field.bounds else field.help
    return typer.Option(
        *names, help=help_text, show_default=shown, metavar=_metavar(field), autocompletion=_words(field.choices)
    )


def _metavar(field: SettingsField) -> str | None:
    if field.type is bool:
        return None
    kinds: dict[Any, str] = {int: "<int>", float: "<number>", Path: "<path>"}
    one = f"<{'|'.join(field.choices)}>" if field.choices else kinds.get(field.type, "<text>")
    return one + ("..." if field.many else "")


def _words(choices: Sequence[str]) -> Callable[[str], list[str]] | None:
    """What the shell offers for a field of a few words."""

    def complete(incomplete: str) -> list[str]:
        return [word for word in choices if word.startswith(incomplete)]

    return complete if choices else None


def spread(words: Sequence[str], command: Command | None) -> list[str]:
    """Repeat a flag before each of several values: ``--aux-layers 1 2 3`` becomes three times ``--aux-layers N``.

    The values end where the next word is a flag, or does not look like the first value (``a=b``, a number), so that
    ``--set a.b=1 c.d=2 quickstart`` leaves ``quickstart`` where it is. A flag that may stand without a value gets its
    usual one where no word follows.
    """
    several = {"--set": str}
    bare: dict[str, str] = {}
    if command is not None:
        known = fields_of(command)[0]
        several |= {flag: field.type for field in known if field.many for flag in field.flags}
        bare = {flag: field.bare for field in known if field.bare is not None for flag in field.flags}
    done: list[str] = []
    flag: str | None = None
    first: str | None = None
    for position, word in enumerate(words):
        if word == "--":
            return [*done, *words[position:]]
        if word in several:
            flag, first = word, None
        elif flag is not None and first is None:
            first = word
        elif flag is not None and first is not None and _alike(first, word, several[flag]):
            done.append(flag)
        else:
            flag = None
        done.append(word)
        if word in bare and (position + 1 == len(words) or words[position + 1].startswith("-")):
            done.append(bare[word])
    return done


def _alike(first: str, word: str, kind: Any) -> bool:
    if kind is int:
        return re.fullmatch(r"-?\d+", word) is not None
    return not word.startswith("-") and ("=" in first) == ("=" in word)


def epilog(examples: Sequence[str]) -> str:
    """The examples below a command's help, each on its own line."""
    title = "Examples:" if len(examples) > 1 else "Example:"
    return "\n".join(["\b", title, *(f"  {example}" for example in examples)])
