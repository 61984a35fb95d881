"""The packaged recipes: settings files for ``eagle3 run`` by name."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from eagle3cli.errors import UsageError
from eagle3cli.settings.errors import suggest


def recipes() -> dict[str, Path]:
    """The packaged recipes by name."""
    folder = Path(str(resources.files("eagle3cli.settings") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def summary(path: Path) -> str:
    """What a recipe is for: its first line, which reads ``# eagle3 run NAME: what it is for``."""
    with path.open(encoding="utf-8") as file:
        first = file.readline()
    return first.partition(": ")[2].strip().rstrip(".") if first.startswith("#") else ""


def find_recipe(name: str) -> Path:
    """A packaged recipe's file, or the file that ``name`` is."""
    if name in recipes():
        return recipes()[name]
    if Path(name).is_file():
        return Path(name)
    close = suggest(name, recipes())
    fix = f"did you mean {close}?" if close else f"give a TOML file or one of: {', '.join(recipes())}"
    raise UsageError("no-such-path", f"no recipe or file {name}", where="RECIPE", fix=fix)
