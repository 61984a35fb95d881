"""A command line made ready for Typer: which action it names, and several values after one flag."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from eagle3cli.cli.command import Command, fields_of
from eagle3cli.settings.packaged import recipes


def resolve(argv: Sequence[str], command: Command) -> Command:
    """The action of ``command`` that the command line names, else the command itself."""
    named = [word for word in argv if not word.startswith("-")][1:2]
    return next((action for action in command.actions if [action.name] == named), command)


def normalize(argv: Sequence[str]) -> list[str]:
    """``eagle3 plan RECIPE`` as ``eagle3 plan run RECIPE``."""
    positions = [position for position, word in enumerate(argv) if not word.startswith("-")]
    for position in positions[1:2]:
        is_recipe = argv[position] in recipes() or argv[position].endswith(".toml")
        # A settings file is also what may stand after a flag.
        if is_recipe and (position == 1 or not argv[position - 1].startswith("-")):
            return [*argv[:position], "run", *argv[position:]]
    return list(argv)


def repeat_flags(argv: Sequence[str], command: Command | None) -> list[str]:
    """Repeat a flag before each of several values: ``--aux-layers 1 2 3`` becomes three times ``--aux-layers N``.

    The values end where the next word is a flag, or does not look like the first value (``a=b``, a number), so that
    ``--set a.b=1 c.d=2 quickstart`` leaves ``quickstart`` where it is. A flag that may stand without a value gets its
    usual one where no word follows.
    """
    fields = fields_of(command)[0] if command is not None else []
    multi_valued = {"--set": str} | {flag: field.type for field in fields if field.many for flag in field.flags}
    bare = {flag: field.bare for field in fields if field.bare is not None for flag in field.flags}
    repeated: list[str] = []
    flag: str | None = None
    first: str | None = None
    for position, word in enumerate(argv):
        if word == "--":
            return [*repeated, *argv[position:]]
        if word in multi_valued:
            flag = word
            first = None
        elif flag is not None and first is None:
            first = word
        elif flag is not None and first is not None and is_one_more(first, word, multi_valued[flag]):
            repeated.append(flag)
        else:
            flag = None
        repeated.append(word)
        if word in bare and (position + 1 == len(argv) or argv[position + 1].startswith("-")):
            repeated.append(bare[word])
    return repeated


def is_one_more(first: str, word: str, kind: Any) -> bool:
    """Whether ``word`` may be one more value after ``first`` of a flag whose values are of the type ``kind``."""
    if kind is int:
        return re.fullmatch(r"-?\d+", word) is not None
    return not word.startswith("-") and ("=" in first) == ("=" in word)
