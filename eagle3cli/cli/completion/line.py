"""A half-typed command line taken apart: what may stand where the cursor is."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from eagle3cli.cli.argv import alike, normalize
from eagle3cli.cli.completion.values import Choice, Offer, offer

if TYPE_CHECKING:
    from eagle3cli.cli.command_spec import CommandSpec
    from eagle3cli.cli.completion.shape import Flag, Position, Shape

PROGRAM = {
    "--version": "Show the version.",
    "--install-completion": "Install completion for the current shell.",
    "--show-completion": "Print what --install-completion writes.",
    "--help": "Show all commands.",
}


@dataclass
class _Walk:
    """What the words before the cursor leave open."""

    given: dict[Flag, list[str]] = field(default_factory=dict)
    waiting: Flag | None = None
    """A flag whose value comes next."""
    going: Flag | None = None
    """A flag that has a value and may take more."""
    placed: list[str] = field(default_factory=list)
    only_positions: bool = False


def complete(words: Sequence[str], current: str, table: Sequence[CommandSpec]) -> Offer:
    """What the shell offers for the word ``current`` after ``words`` (the program's name left out)."""
    named = next((position for position, word in enumerate(words) if not word.startswith("-")), None)
    if named is None:
        told = PROGRAM.items() if current.startswith("-") else ((line.name, line.summary) for line in table)
        if words and words[-1] in ("--install-completion", "--show-completion"):
            told = ((shell, "") for shell in ("bash", "zsh", "fish"))
        return Offer([Choice(word, text) for word, text in told if word.startswith(current)])
    line = next((line for line in table if line.name == words[named]), None)
    if line is None:
        return Offer([])
    from eagle3cli.cli.completion.shape import shape

    words = normalize(words) if line.name == "plan" else words
    found, rest = shape(importlib.import_module(line.module), list(words[named + 1 :]))
    return _offer(found, _walk(found, rest), current)


def _walk(shape: Shape, words: Sequence[str]) -> _Walk:
    walk = _Walk()
    for word in words:
        if word == "--":
            walk.only_positions = True
        elif word.startswith("--") and not walk.only_positions:
            name, equals, value = word.partition("=")
            flag = shape.flag(name)
            walk.waiting = walk.going = None
            if flag is not None:
                walk.given.setdefault(flag, []).extend([value] if equals else [])
                walk.waiting = flag if flag.values and not equals else None
        elif walk.waiting is not None:
            walk.given[walk.waiting].append(word)
            walk.going = walk.waiting if walk.waiting.many else None
            walk.waiting = None
        elif walk.going is not None and alike(walk.given[walk.going][-1], word, walk.going.type):
            walk.given[walk.going].append(word)
        else:
            walk.going = None
            walk.placed.append(word)
    return walk


def _offer(shape: Shape, walk: _Walk, current: str) -> Offer:
    name, equals, begun = current.partition("=")
    if current.startswith("-") and not walk.only_positions:
        flag = shape.flag(name) if equals else None
        return offer(flag.values, begun, before=f"{name}=") if flag else _flags(shape, walk, current)
    if walk.waiting is not None:
        return offer(walk.waiting.values, current, walk.given[walk.waiting])
    found = Offer([])
    if walk.going is not None:
        found += offer(walk.going.values, current, walk.given[walk.going])
    if not walk.placed:
        found += Offer([Choice(action, text) for action, text in shape.actions if action.startswith(current)])
    position = _position(shape, walk)
    if position is not None:
        found += offer(position.values, current, walk.placed)
    if not found.choices and not found.paths and not current:
        return _flags(shape, walk, current)
    return found


def _position(shape: Shape, walk: _Walk) -> Position | None:
    if len(walk.placed) < len(shape.positions):
        return shape.positions[len(walk.placed)]
    return shape.positions[-1] if shape.positions and shape.positions[-1].many else None


def _flags(shape: Shape, walk: _Walk, current: str) -> Offer:
    """The flags that are not given yet; of each the first name that fits."""
    choices = []
    for flag in shape.flags:
        fitting = [name for name in flag.names if name.startswith(current)]
        if fitting and (flag.repeats or flag not in walk.given):
            choices.append(Choice(fitting[0], flag.help))
    return Offer(choices)
