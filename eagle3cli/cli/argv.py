"""The words of a command line, made ready for Typer: which action they name, and several values after one flag."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from eagle3cli.cli.command import Command, fields_of
from eagle3cli.settings.packaged import recipes


def resolve(words: Sequence[str], command: Command) -> Command:
    """The action of a command that these words name, else the command."""
    named = [word for word in words if not word.startswith("-")][1:2]
    return next((action for action in command.actions if [action.name] == named), command)


def normalize(words: Sequence[str]) -> list[str]:
    """``eagle3 plan RECIPE`` as ``eagle3 plan run RECIPE``."""
    at = [position for position, word in enumerate(words) if not word.startswith("-")][1:2]
    recipe = [position for position in at if words[position] in recipes() or words[position].endswith(".toml")]
    # A settings file is also what may stand after a flag.
    found = [position for position in recipe if position == 1 or not words[position - 1].startswith("-")]
    return [*words[: found[0]], "run", *words[found[0] :]] if found else list(words)


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
        elif flag is not None and first is not None and alike(first, word, several[flag]):
            done.append(flag)
        else:
            flag = None
        done.append(word)
        if word in bare and (position + 1 == len(words) or words[position + 1].startswith("-")):
            done.append(bare[word])
    return done


def alike(first: str, word: str, kind: Any) -> bool:
    """Whether ``word`` may be one more value after ``first`` of a flag whose values are of the type ``kind``."""
    if kind is int:
        return re.fullmatch(r"-?\d+", word) is not None
    return not word.startswith("-") and ("=" in first) == ("=" in word)
