"""The help of a command: what a person sets in the common case, and with ``--help-all`` every option in its group."""

from __future__ import annotations

import inspect
import shutil
import textwrap
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING, Any

from eagle3cli.cli.command import COMMON_FLAGS, DRY_RUN_HELP, Command, fields_of
from eagle3cli.settings.fields import SettingsField
from eagle3cli.settings.groups import ESSENTIAL, grouped
from eagle3cli.settings.packaged import recipes

if TYPE_CHECKING:
    import typer

SHORT = ("--help", "-h")
ALL = "--help-all"
FLAGS = (*SHORT, ALL)
FEW = 8
"""Options of a command up to which all are shown at once, and choices of an option."""
LEFT = 34
"""Columns for an option's name at most; a longer one has a line of its own."""
NARROWEST = 60
EVERY_COMMAND = "Every command"
BOLD, CYAN, DIM = "1", "36", "2"


@dataclass(frozen=True)
class Entry:
    """One line of help: an option or an action as typed, its value, what it is for, and its default."""

    name: str
    value: str
    text: str
    default: str = ""

    @property
    def left(self) -> str:
        """The name with its value."""
        return f"{self.name} {self.value}".rstrip()


@dataclass(frozen=True)
class HelpPage:
    """The help of one command."""

    usage: str
    summary: str
    groups: dict[str, list[Entry]]
    examples: Sequence[str] = ()
    more: str = ""
    """What ``--help-all`` adds."""
    brief: bool = False
    """Whether what does not fit on a line is left out from its last semicolon on."""
    width: int = field(default_factory=lambda: max(NARROWEST, shutil.get_terminal_size().columns))

    def text(self, *, colour: bool) -> str:
        """All of it, as wide as the terminal."""
        paint = _painter(colour)
        lefts = [len(entry.left) for entries in self.groups.values() for entry in entries]
        left = min(LEFT, max((length + 2 for length in lefts if length + 2 <= LEFT), default=LEFT))
        lines = [f"{paint('Usage:', BOLD)} {self.usage}", ""]
        lines += [f"  {line}" for line in textwrap.wrap(self.summary, self.width - 2)]
        for title, entries in self.groups.items():
            lines += ["", paint(f"{title}:", BOLD)]
            lines += [line for entry in entries for line in self._entry_lines(entry, left, paint)]
        if self.more:
            lines += ["", *(paint(line, DIM) for line in textwrap.wrap(self.more, self.width))]
        if self.examples:
            lines += ["", paint("Examples:" if len(self.examples) > 1 else "Example:", BOLD)]
            lines += [f"  {example}" for example in self.examples]
        return "\n".join(lines)

    def _entry_lines(self, entry: Entry, left: int, paint: Any) -> Iterator[str]:
        """The name and its value to the left, the text to the right of them, or below where they are long."""
        shown = paint(entry.name, CYAN) + (f" {paint(entry.value, DIM)}" if entry.value else "")
        default = f"[{entry.default}]" if entry.default else ""
        room = self.width - left - 2
        text = f"{self._fitting(entry.text, room - len(default) - 1)} {default}".rstrip()
        lines = textwrap.wrap(text, room, break_on_hyphens=False, break_long_words=False) or [""]
        if default and lines[-1].endswith(default):
            lines[-1] = lines[-1].removesuffix(default) + paint(default, DIM)
        if len(entry.left) > left - 2:
            yield f"  {shown}"
        else:
            yield f"  {shown}{' ' * (left - len(entry.left))}{lines.pop(0)}"
        for line in lines:
            yield f"  {' ' * left}{line}"

    def _fitting(self, text: str, room: int) -> str:
        while self.brief and len(text) > room and ("; " in text or ". " in text):
            text = text[: max(text.rfind("; "), text.rfind(". "))].rstrip(".") + "."
        return text


def _painter(colour: bool) -> Any:
    return (lambda text, code: f"\x1b[{code}m{text}\x1b[0m") if colour else (lambda text, code: text)


def wanted_help(argv: Sequence[str]) -> str | None:
    """The flag that asks for help, of a command line; None where none does."""
    words = argv[: list(argv).index("--")] if "--" in argv else argv
    return next((word for word in reversed(words) if word in FLAGS), None)


def help_of(command: Command, usage: str, *, everything: bool) -> HelpPage:
    """The page of a command, ``everything`` or what is set in the common case."""
    flags, arguments = fields_of(command)
    groups = {title: [_entry(one, not everything) for one in members] for title, members in grouped(flags).items()}
    words = [argument.name.upper() for argument in arguments]
    if command.recipe:
        words.insert(0, "RECIPE")
        recipe = Entry("RECIPE", "", f"A recipe ({', '.join(recipes())}) or a settings file.")
        groups[ESSENTIAL] = [recipe, *groups.get(ESSENTIAL, [])]
    own = [Entry(argument.name.upper(), "", argument.help) for argument in arguments]
    if own:
        groups = {ESSENTIAL: [*own, *groups.pop(ESSENTIAL, [])], **groups}
    if command.actions:
        groups = {"Actions": [Entry(action.name, "", action.summary) for action in command.actions], **groups}
        words.append("[ACTION]")
    usage = " ".join([usage, *(f"[{word}]" if not word.startswith("[") else word for word in words), "[OPTIONS]"])
    common = list(_common(command))
    if everything:
        return HelpPage(usage, command.summary, {**groups, EVERY_COMMAND: common}, command.examples)
    shown = groups
    if len(flags) > FEW:
        shown = {"Actions": groups.pop("Actions", []), "Options": groups.pop(ESSENTIAL, [])}
        shown["Options"] = [entry for entry in shown["Options"] if entry.name not in command.rarely]
        shown = {title: entries for title, entries in shown.items() if entries}
    count = len(flags) + len(common) - sum(entry.name.startswith("--") for part in shown.values() for entry in part)
    hidden = [title.lower() for title in groups if title not in shown]
    more = f"{count} more with {ALL}: {', '.join([*hidden, EVERY_COMMAND.lower()])}."
    return HelpPage(usage, command.summary, shown, command.examples[-1:], more, brief=True)


def _entry(one: SettingsField, brief: bool) -> Entry:
    """An option; in ``brief`` without its bounds and its other names."""
    names = list(one.flags)
    text = one.help if brief or not one.bounds else f"{one.help.rstrip('.')} ({one.bounds})."
    if one.type is bool:
        name = f"--no-{names[0].removeprefix('--')}" if one.default else names[0]
        return Entry(name, "", f"{text.rstrip('.')}; on unless this is given." if one.default else text)
    if len(names) > 1 and not brief:
        text = f"{text} Also {', '.join(names[1:])}."
    return Entry(names[0], _value(one, brief), text, _default(one))


def _value(one: SettingsField, brief: bool) -> str:
    choices = one.choices
    if brief and len(choices) > FEW:
        choices = (*choices[:2], "...", choices[-1])
    kinds: dict[Any, str] = {int: "<int>", float: "<number>"}
    if one.words:
        return f"<{'|'.join([kinds[one.type].strip('<>'), *one.words])}>"
    value = f"<{'|'.join(choices)}>" if choices else kinds.get(one.type, "<path>" if one.is_path else "<text>")
    return value + ("..." if one.many else "")


def _default(one: SettingsField) -> str:
    if one.default in (None, "", ()) or one.default is False:
        return ""
    return " ".join(map(str, one.default)) if isinstance(one.default, tuple) else str(one.default)


def _common(command: Command) -> Iterator[Entry]:
    values = {"--config": "<path>", "--set": "<table.key=value>"}
    if command.plan is not None:
        yield Entry("--dry-run", "", DRY_RUN_HELP)
    for name, text in COMMON_FLAGS.items():
        yield Entry(name, values.get(name, ""), text)
    yield Entry("-h, --help", "", "Show what is set in the common case.")
    yield Entry(ALL, "", "Show every option.")


def help_of_app(module: ModuleType, usage: str, summary: str, argv: Sequence[str]) -> HelpPage:
    """The page of a command whose actions are functions written for Typer, or of the action that ``argv`` names."""
    app: typer.Typer = module.app
    actions = {info.name or info.callback.__name__: info for info in app.registered_commands if info.callback}
    named = next((word for word in argv if word in actions), None)
    if named is None:
        listed = [
            Entry(name, "", (inspect.getdoc(info.callback) or "").split("\n")[0]) for name, info in actions.items()
        ]
        return HelpPage(f"{usage} ACTION", summary, {"Actions": listed})
    info = actions[named]
    entries: list[Entry] = []
    words: list[str] = []
    for annotation in typing.get_type_hints(info.callback, include_extras=True).values():
        if typing.get_origin(annotation) is not typing.Annotated:
            continue
        _, parameter = typing.get_args(annotation)
        declared = (parameter.default, *(getattr(parameter, "param_decls", None) or ()))
        names = [name for name in declared if isinstance(name, str) and name.startswith("-")]
        if not names:
            words.append(f"[{parameter.metavar}]")
        entries.append(
            Entry(", ".join(names) or parameter.metavar, parameter.metavar or "" if names else "", parameter.help)
        )
    examples = [line.strip() for line in (info.epilog or "").split("\n") if line.strip().startswith("eagle3 ")]
    text = inspect.getdoc(info.callback) or ""
    page_usage = " ".join([usage, named, *words, "[OPTIONS]"])
    return HelpPage(page_usage, text, {"Options": entries}, examples)
