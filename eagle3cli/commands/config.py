"""eagle3 config: show, check and write settings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from eagle3cli import options
from eagle3cli.console.out import Out
from eagle3cli.errors import UsageError
from eagle3cli.options import Config, Debug, Json, Set
from eagle3cli.settings import load as layers
from eagle3cli.settings.fields import select, tables
from eagle3cli.settings.packaged import find_recipe
from eagle3cli.settings.toml import commented_toml, literal

app = typer.Typer()
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")]
Keys = Annotated[list[str] | None, typer.Argument(metavar="KEY", help="Only these tables or table.key; all if none.")]
Files = Annotated[list[str] | None, typer.Argument(metavar="FILE", help="Files or recipes; eagle3.toml if none.")]
Target = Annotated[Path, typer.Argument(metavar="FILE", help="The file to write.")]


@app.command(epilog=options.epilog(["eagle3 config show train", "eagle3 config show --set train.batch_size=8"]))
def show(keys: Keys = None, config: Config = None, set_: Set = None, json_: Json = False, debug: Debug = False) -> None:
    """Show every setting with its value and where that came from."""
    loaded = layers.load(config or (), set_ or ())
    rows = []
    for pattern in keys or tables():
        try:
            chosen = select(pattern if "." in pattern else f"{pattern}.*")
        except KeyError as error:
            raise layers.unknown_key(pattern, "KEY") from error
        for field in chosen:
            value = getattr(getattr(loaded.settings, field.table), field.name)
            rows.append((field.key, value, loaded.origin(field.key)))
    out = Out(json_wanted=json_)
    shown = [(key, "-" if value is None else literal(value), origin) for key, value, origin in rows]
    if not json_:
        out.table("", ("setting", "value", "from"), shown)
        return
    out.result({key: {"value": value, "from": origin} for key, value, origin in rows}, "")


@app.command(epilog=options.epilog(["eagle3 config check", "eagle3 config check eagle3.toml experiment.toml"]))
def check(files: Files = None, json_: Json = False, debug: Debug = False) -> None:
    """Check settings files: unknown keys, wrong values, broken TOML."""
    if not files and not layers.FOLDER_FILE.is_file():
        raise UsageError(
            "no settings file here", where="eagle3.toml", fix="name a file, or write one: eagle3 config init"
        )
    paths = [find_recipe(name) for name in files or ()]
    loaded = layers.load(paths)
    checked = ", ".join(map(str, loaded.files))
    count = len(loaded.origins)
    text = f"{checked}: fine, {count} setting{'' if count == 1 else 's'} given"
    Out(json_wanted=json_).result({"files": list(loaded.files), "settings": count}, text)


@app.command(epilog=options.epilog(["eagle3 config init", "eagle3 config init experiment.toml"]))
def init(
    file: Target = layers.FOLDER_FILE, overwrite: Overwrite = False, json_: Json = False, debug: Debug = False
) -> None:
    """Write a settings file with every setting as a comment, its help and its default."""
    from eagle3cli.runtime.files import refuse_existing, write_text

    refuse_existing(file, overwrite)
    write_text(file, commented_toml())
    Out(json_wanted=json_).result({"file": file}, f"wrote {file}; remove the # before what you want to set")


@app.command(epilog=options.epilog(["eagle3 config schema > eagle3.schema.json"]))
def schema(debug: Debug = False) -> None:
    """Print the JSON Schema of the settings file, for editors."""
    from eagle3cli.settings.tables import Settings

    Out().print(json.dumps(Settings.model_json_schema(), indent=1, ensure_ascii=False))
