"""What may stand where the cursor is in a command line that is not finished."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from eagle3cli.cli.argv import is_one_more, normalize
from eagle3cli.cli.command_spec import CommandSpec
from eagle3cli.cli.completion.syntax import Argument, Flag, Syntax, syntax_of
from eagle3cli.cli.completion.values import Offer, offer, starting_with

SHELLS = ("bash", "zsh", "fish")
PROGRAM_FLAGS = {
    "--version": "Show the version.",
    "--install-completion": "Install completion for the current shell.",
    "--show-completion": "Print what --install-completion writes.",
    "--help": "Show all commands.",
}


@dataclass
class _Parsed:
    """What the words before the cursor say, and what they leave open."""

    values: dict[Flag, list[str]] = field(default_factory=dict)
    waiting: Flag | None = None
    """A flag whose value comes next."""
    open: Flag | None = None
    """A flag that has a value and may take more."""
    arguments: list[str] = field(default_factory=list)
    only_arguments: bool = False


def complete(argv: Sequence[str], current: str, commands: Sequence[CommandSpec]) -> Offer:
    """What the shell offers for the word ``current`` after ``argv`` (the program's name left out)."""
    named = next((position for position, word in enumerate(argv) if not word.startswith("-")), None)
    if named is None:
        words = PROGRAM_FLAGS if current.startswith("-") else {spec.name: spec.summary for spec in commands}
        if argv and argv[-1] in ("--install-completion", "--show-completion"):
            words = dict.fromkeys(SHELLS, "")
        return Offer(starting_with(current, words))
    spec = next((spec for spec in commands if spec.name == argv[named]), None)
    if spec is None:
        return Offer({})
    argv = normalize(argv) if spec.name == "plan" else argv
    syntax, rest = syntax_of(importlib.import_module(spec.module), list(argv[named + 1 :]))
    return _offer(syntax, _parse(syntax, rest), current)


def _parse(syntax: Syntax, argv: Sequence[str]) -> _Parsed:
    parsed = _Parsed()
    for word in argv:
        if word == "--":
            parsed.only_arguments = True
        elif word.startswith("--") and not parsed.only_arguments:
            name, equals, value = word.partition("=")
            flag = syntax.flag(name)
            parsed.waiting = flag if flag is not None and flag.values and not equals else None
            parsed.open = None
            if flag is not None:
                parsed.values.setdefault(flag, []).extend([value] if equals else [])
        elif parsed.waiting is not None:
            parsed.values[parsed.waiting].append(word)
            parsed.open = parsed.waiting if parsed.waiting.many else None
            parsed.waiting = None
        elif parsed.open is not None and is_one_more(parsed.values[parsed.open][-1], word, parsed.open.type):
            parsed.values[parsed.open].append(word)
        else:
            parsed.open = None
            parsed.arguments.append(word)
    return parsed


def _offer(syntax: Syntax, parsed: _Parsed, current: str) -> Offer:
    if current.startswith("-") and not parsed.only_arguments:
        name, equals, value = current.partition("=")
        flag = syntax.flag(name) if equals else None
        return offer(flag.values, value, before=f"{name}=") if flag else _flags(syntax, parsed, current)
    if parsed.waiting is not None:
        return offer(parsed.waiting.values, current, parsed.values[parsed.waiting])
    offered = Offer({})
    if parsed.open is not None:
        offered += offer(parsed.open.values, current, parsed.values[parsed.open])
    if not parsed.arguments:
        offered += Offer(starting_with(current, syntax.actions))
    argument = _next_argument(syntax, parsed)
    if argument is not None:
        offered += offer(argument.values, current, parsed.arguments)
    if not offered.words and not offered.paths and not current:
        return _flags(syntax, parsed, current)
    return offered


def _next_argument(syntax: Syntax, parsed: _Parsed) -> Argument | None:
    if len(parsed.arguments) < len(syntax.arguments):
        return syntax.arguments[len(parsed.arguments)]
    return syntax.arguments[-1] if syntax.arguments and syntax.arguments[-1].many else None


def _flags(syntax: Syntax, parsed: _Parsed, current: str) -> Offer:
    """The flags that are not given yet; of each the first name that fits."""
    words: dict[str, str] = {}
    for flag in syntax.flags:
        if flag.repeats or flag not in parsed.values:
            names = starting_with(current, dict.fromkeys(flag.names, flag.help))
            words |= dict(list(names.items())[:1])
    return Offer(words)
