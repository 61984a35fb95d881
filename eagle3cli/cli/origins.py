"""Says what a command takes from where nobody named it on the command line: ``eagle3.toml`` beside a recipe, and what
the stage before has written.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any

from eagle3cli.cli.chain import as_flags
from eagle3cli.console.out import Out
from eagle3cli.settings.fields import fields
from eagle3cli.settings.load import FOLDER_FILE, Loaded
from eagle3cli.settings.toml import literal


def tell_of_folder_file(loaded: Loaded, out: Out) -> None:
    """What ``eagle3.toml`` changes of a recipe, and which paths of it do not count there; nothing without a recipe."""
    beside = loaded.beside_recipe
    if beside is None:
        return
    values = [
        f"{key} = {literal(fields()[key].value(loaded.settings))} ({where})" for key, where in beside.taken.items()
    ]
    if values:
        out.info(f"taken from {FOLDER_FILE}, where the recipe says nothing: {', '.join(values)}")
    if beside.left:
        places = ", ".join(f"{key} ({where})" for key, where in beside.left.items())
        out.info(f"not taken from {FOLDER_FILE}, as paths beside a recipe never are: {places}")


def tell_of_inputs(loaded: Loaded, inputs: Mapping[str, Any], out: Out) -> None:
    """Which inputs come from the stages before, as the flags that would have named them."""
    words = as_flags(loaded.settings, inputs)
    if words:
        out.info(f"as the stages before left it: {shlex.join(words)}")
