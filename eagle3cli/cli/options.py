"""A command's flags for Typer, generated from the settings tables."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from eagle3cli.cli.chain import with_inputs
from eagle3cli.cli.command import COMMON_FLAGS, DRY_RUN_HELP, Command, fields_of
from eagle3cli.cli.dry_run import show
from eagle3cli.cli.next_line import next_line
from eagle3cli.cli.origins import tell_of_folder_file, tell_of_inputs
from eagle3cli.cli.remote_code import warn_of_remote_code
from eagle3cli.console.out import Out
from eagle3cli.errors import UsageError
from eagle3cli.runtime.cpus import has_bfloat16
from eagle3cli.runtime.gpus import visible_gpus
from eagle3cli.settings.errors import DEFAULT
from eagle3cli.settings.fields import SettingsField
from eagle3cli.settings.load import Loaded, load
from eagle3cli.settings.packaged import find_recipe, recipes
from eagle3cli.settings.tables import Settings

Config = Annotated[list[Path] | None, typer.Option("--config", metavar="<path>", help=COMMON_FLAGS["--config"])]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="<table.key=value>", help=COMMON_FLAGS["--set"])]
Json = Annotated[bool, typer.Option("--json", help=COMMON_FLAGS["--json"])]
Debug = Annotated[bool, typer.Option("--debug", help=COMMON_FLAGS["--debug"])]


def function(command: Command) -> Callable[..., int]:
    """The function that Typer turns into the command: parses flags, loads the settings, runs."""
    flags, arguments = fields_of(command)

    def call(context: typer.Context, **values: Any) -> int:
        if context.invoked_subcommand is not None:
            _refuse_flags_before(context.invoked_subcommand, context, values)
            return 0
        typed: dict[str, tuple[str, Any]] = {}
        for field in (*arguments, *flags):
            if _is_typed(context, _parameter(field)):
                name = field.name.upper() if field in arguments else field.flags[0]
                typed[field.key] = (name, values[_parameter(field)])
        recipe = find_recipe(values["recipe"]) if command.recipe and values["recipe"] else None
        loaded = _load(command, values["config"] or (), values["set_"] or (), typed, recipe)
        if recipe and loaded.origin("run.output_dir") == DEFAULT:  # each recipe has its own folder
            settings = loaded.settings.updated("run", output_dir=Path("runs") / recipe.stem)
            loaded = replace(loaded, settings=settings)
        settings, inputs = with_inputs(command.name, loaded.settings)
        loaded = replace(loaded, settings=settings)
        out = Out(json_wanted=values["json_"], next_line=partial(next_line, loaded))
        tell_of_folder_file(loaded, out)
        tell_of_inputs(loaded, inputs, out)
        warn_of_remote_code(loaded, out)
        settings = with_target_type(settings)
        if command.plan is not None and values["dry_run"]:
            return show(command.plan, settings, out)
        return command.run(settings, out) or 0

    parameters = list(_parameters(command, flags, arguments))
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in parameters}
    call.__doc__ = command.summary
    return call


def _load(
    command: Command,
    files: Sequence[Path],
    assignments: Sequence[str],
    typed: dict[str, tuple[str, Any]],
    recipe: Path | None,
) -> Loaded:
    try:
        return load(files, assignments, typed, recipe=recipe)
    except UsageError:
        if not command.lenient or files or assignments or recipe:
            raise
        return Loaded(Settings(), {}, ())


def with_target_type(settings: Settings) -> Settings:
    """The settings with ``fastest`` as the type that it means on this machine."""
    target = settings.target
    if target.dtype != "fastest":
        return settings
    is_cpu = target.device == "cpu" or (target.device == "auto" and not visible_gpus())
    return settings.updated("target", dtype="bfloat16" if is_cpu and has_bfloat16() else "auto")


def _refuse_flags_before(action: str, context: typer.Context, parameters: Iterable[str]) -> None:
    """Flags before the name of an action would be read by nobody."""
    if any(_is_typed(context, name) for name in parameters):
        raise UsageError("command-line", f"flags stand before {action}", fix=f"put them after the word {action}")


def _is_typed(context: typer.Context, parameter: str) -> bool:
    """Whether the command line gives this parameter."""
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


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
        argument = typer.Argument(metavar="RECIPE", help=text)
        yield keyword("recipe", Annotated[str | None, argument])
    for field in arguments:
        argument = typer.Argument(metavar=field.name.upper(), help=field.help)
        # The help of an argument shows its type as it is.
        annotation = _type(field, (bool, Path, int))
        yield keyword(_parameter(field), Annotated[annotation, argument], _default(field))
    for field in flags:
        yield keyword(_parameter(field), Annotated[_type(field), _option(field)], _default(field))
    if command.plan is not None:
        yield keyword("dry_run", Annotated[bool, typer.Option("--dry-run", help=DRY_RUN_HELP)], False)
    yield keyword("config", Config)
    yield keyword("set_", Set)
    yield keyword("json_", Json, False)
    yield keyword("debug", Debug, False)


def _type(field: SettingsField, parsed: Sequence[type] = (bool, Path)) -> Any:
    """What Typer parses; numbers and choices stay text, so that one place (the settings) judges every value."""
    one = field.type if field.type in parsed else str
    return (list[one] if field.many else one) | None  # type: ignore[valid-type]


def _default(field: SettingsField) -> Any:
    if isinstance(field.default, tuple):
        return [str(value) for value in field.default] or None
    return field.default if field.type in (bool, Path) or field.default is None else str(field.default)


def _option(field: SettingsField) -> Any:
    names = list(field.flags)
    if field.type is bool:
        names = [f"{name}/--no-{name.removeprefix('--')}" for name in names]
    show_default = field.default is not False and field.default not in ("", None, ())
    help_text = f"{field.help.rstrip('.')} ({field.bounds})." if field.bounds else field.help
    return typer.Option(*names, help=help_text, show_default=show_default, metavar=_metavar(field))


def _metavar(field: SettingsField) -> str | None:
    if field.type is bool:
        return None
    kinds: dict[Any, str] = {int: "<int>", float: "<number>", Path: "<path>"}
    one = f"<{'|'.join(field.choices)}>" if field.choices else kinds.get(field.type, "<text>")
    return one + ("..." if field.many else "")


def epilog(examples: Sequence[str]) -> str:
    """The examples below a command's help, each on its own line."""
    title = "Examples:" if len(examples) > 1 else "Example:"
    return "\n".join(["\b", title, *(f"  {example}" for example in examples)])
