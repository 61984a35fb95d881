"""eagle3 config: show, check and write settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from eagle3cli.cli import options
from eagle3cli.cli.options import Config, Debug, Json, Set
from eagle3cli.console.out import Out
from eagle3cli.errors import UsageError
from eagle3cli.settings import load as layers
from eagle3cli.settings.fields import tables
from eagle3cli.settings.packaged import find_recipe
from eagle3cli.settings.toml import literal

app = typer.Typer()
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Ask nothing; every setting as a comment.")]
Keys = Annotated[list[str] | None, typer.Argument(metavar="KEY", help="Only these tables or table.key; all if none.")]
Files = Annotated[list[str] | None, typer.Argument(metavar="FILE", help="Files or recipes; eagle3.toml if none.")]
Target = Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")]


@app.command(epilog=options.epilog(["eagle3 config show train", "eagle3 config show --set train.batch_size=8"]))
def show(keys: Keys = None, config: Config = None, set_: Set = None, json_: Json = False, debug: Debug = False) -> None:
    """Show every setting with its value and where that came from."""
    rows = layers.load(config or (), set_ or ()).rows(keys or list(tables()))
    out = Out(json_wanted=json_)
    shown = [(key, "-" if value is None else literal(value), origin) for key, value, origin in rows]
    if not json_:
        out.table("", ("setting", "value", "from"), shown)
        return
    out.result({key: {"value": value, "from": origin} for key, value, origin in rows}, "")


@app.command(epilog=options.epilog(["eagle3 config check", "eagle3 config check eagle3.toml experiment.toml"]))
def check(files: Files = None, json_: Json = False, debug: Debug = False) -> None:
    """Check settings files: unknown keys, wrong values, broken TOML; all mistakes at once."""
    if not files and not layers.FOLDER_FILE.is_file():
        fix = "name a file, or write one: eagle3 config init"
        raise UsageError("no-such-path", "no settings file here", where="eagle3.toml", fix=fix)
    loaded = layers.load([find_recipe(name) for name in files or ()])
    out = Out(json_wanted=json_)
    for where, key, path in loaded.missing_inputs():
        out.warn(f"{where}: {key}: {path} is not there yet")
    count = len(loaded.origins)
    text = f"{', '.join(map(str, loaded.files))}: fine, {count} setting{'' if count == 1 else 's'} given"
    out.result({"files": list(loaded.files), "settings": count}, text)


@app.command(epilog=options.epilog(["eagle3 config init", "eagle3 config init experiment.toml --yes"]))
def init(
    file: Target = layers.FOLDER_FILE,
    yes: Yes = False,
    overwrite: Overwrite = False,
    json_: Json = False,
    debug: Debug = False,
) -> None:
    """Write a settings file: a few questions on a terminal, and all other settings as comments with their help."""
    from eagle3cli.commands.config_init import write_starter

    write_starter(file, ask=not yes, overwrite=overwrite, out=Out(json_wanted=json_))


@app.command(epilog=options.epilog(["eagle3 config schema > eagle3.schema.json"]))
def schema(debug: Debug = False) -> None:
    """Print the JSON Schema of the settings file, for editors."""
    from eagle3cli.settings.schema import json_schema

    Out().print(json.dumps(json_schema(), indent=1, ensure_ascii=False))
