"""What a shell's script asks and what it is told: a line for paths, then one line for each word that may follow.

bash hands over its line and the piece of it that it will replace (it also breaks words at ``=`` and ``:``); zsh and
fish hand over the words, and show the help behind a tab.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from eagle3cli.cli.completion.values import Offer

if TYPE_CHECKING:
    from eagle3cli.cli.command_spec import CommandSpec

SHELLS = ("bash", "zsh", "fish")
ASKED = "_EAGLE3_COMPLETE"
HELP_WIDTH = 72


def script(shell: str) -> str:
    """The completion script of a shell."""
    folder = Path(str(resources.files("eagle3cli.cli.completion") / "scripts"))
    return (folder / f"eagle3.{shell}").read_text(encoding="utf-8")


def answer(argv: Sequence[str], table: Sequence[CommandSpec]) -> str:
    """What the script that asked prints to its shell."""
    from eagle3cli.cli.completion.line import complete

    if os.environ[ASKED] != "bash":
        return _with_help(complete(argv[:-1], argv[-1] if argv else "", table))
    words, current = split(os.environ.get("_EAGLE3_LINE", ""))
    return _for_bash(complete(words[1:], current, table), current, os.environ.get("_EAGLE3_PIECE", ""))


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
    begun = "" if piece in ("=", ":") else split(piece)[1]
    kept = len(current) - len(begun) if current.endswith(begun) else 0
    return "\n".join([offer.paths, *(choice.word[kept:] for choice in offer.choices)])


def _with_help(offer: Offer) -> str:
    return "\n".join([offer.paths, *(f"{choice.word}\t{_short(choice.help)}" for choice in offer.choices)])


def _short(text: str) -> str:
    """A help text on one line: its first sentence, cut at a word."""
    first = " ".join(text.split()).split(". ")[0].rstrip(".")
    return first if len(first) <= HELP_WIDTH else first[:HELP_WIDTH].rpartition(" ")[0] + " ..."
