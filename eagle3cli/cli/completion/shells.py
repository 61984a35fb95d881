"""What a shell's script sends and gets: a line for paths, then one line for each word that may follow.

bash hands over its line and the piece of it that it will replace (it also breaks words at ``=`` and ``:``); zsh and
fish hand over the words, and show the help behind a tab.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from importlib import resources
from pathlib import Path

from eagle3cli.cli.command_spec import CommandSpec
from eagle3cli.cli.completion.complete import complete
from eagle3cli.cli.completion.values import Offer

VARIABLE = "_EAGLE3_COMPLETE"
"""Set by the scripts to the name of their shell."""
HELP_WIDTH = 72


def script(shell: str) -> str:
    """The completion script of a shell."""
    folder = Path(str(resources.files("eagle3cli.cli.completion") / "scripts"))
    return (folder / f"eagle3.{shell}").read_text(encoding="utf-8")


def answer(argv: Sequence[str], commands: Sequence[CommandSpec]) -> str:
    """What a script prints to its shell."""
    if os.environ[VARIABLE] != "bash":
        offer = complete(argv[:-1], argv[-1] if argv else "", commands)
        return "\n".join([offer.paths, *(f"{word}\t{_short(text)}" for word, text in offer.words.items())])
    words, current = split(os.environ.get("_EAGLE3_LINE", ""))
    return _for_bash(complete(words[1:], current, commands), current, os.environ.get("_EAGLE3_PIECE", ""))


def split(line: str) -> tuple[list[str], str]:
    """A line up to the cursor as words, and the word that the cursor ends; an open quote ends there too."""
    for closed in (line, line.removesuffix("\\"), line + '"', line + "'"):
        try:
            words = shlex.split(closed)
            break
        except ValueError:
            continue
    else:
        words = line.split()
    ended = closed == line and line[-1:].isspace() and not line.endswith("\\ ")
    return (words, "") if ended or not words else (words[:-1], words[-1])


def _for_bash(offer: Offer, current: str, piece: str) -> str:
    """bash replaces only the piece after the last ``=`` or ``:``, so the words begin there."""
    replaced = "" if piece in ("=", ":") else split(piece)[1]
    begin = len(current) - len(replaced) if current.endswith(replaced) else 0
    return "\n".join([offer.paths, *(word[begin:] for word in offer.words)])


def _short(text: str) -> str:
    """A help text on one line: its first sentence, cut at a word."""
    first = " ".join(text.split()).split(". ")[0].rstrip(".")
    return first if len(first) <= HELP_WIDTH else first[:HELP_WIDTH].rpartition(" ")[0] + " ..."
