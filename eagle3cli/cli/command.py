"""What a command is: a name, the settings it shows as flags, and one function."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from eagle3cli.console.out import Out
from eagle3cli.runtime.plan import Plan
from eagle3cli.settings.fields import SettingsField, select
from eagle3cli.settings.tables import Settings

TOKENIZE_FIELDS = (
    *("data.chat_template", "data.chat_template_kwargs", "data.max_length", "data.system_prompt"),
    *("data.is_preformatted", "data.assistant_header", "data.end_of_turn_token", "data.user_header"),
    "data.last_turn_only",
)
"""The fields that decide the tokens and the mask of a row."""

LOCAL_TARGET_FIELDS = tuple(
    f"target.{name}"
    for name in ("model_path", "adapter", "revision", "dtype", "device", "threads", "trust_remote_code")
) + ("target.device_map", "target.max_memory", "target.offload_folder")
"""The target's fields for a command that runs it in one process, through transformers."""

COMMON_FLAGS = {
    "--config": "Settings file (TOML); repeatable, later ones win.",
    "--set": "One setting; repeatable.",
    "--json": "One machine-readable result on stdout.",
    "--debug": "Show the traceback of an error.",
}
"""The flags that every command has, with their help."""
DRY_RUN_HELP = "Say what would be read, done and written, and do nothing."


@dataclass(frozen=True)
class Command:
    """One command of the program.

    ``fields`` are settings fields shown as flags (``"train.*"`` or ``"data.train_path"``), ``arguments`` those given
    by position. ``recipe`` adds a first argument RECIPE: a packaged recipe's name or a TOML file, read before
    ``--config``. ``actions`` are commands under the same name, chosen by the word after it
    (``eagle3 hidden-states verify``). ``run`` returns the exit code, None for 0. ``plan`` says what ``run`` would do
    and does nothing; a command that has one has ``--dry-run``.
    """

    name: str
    summary: str
    examples: tuple[str, ...]
    run: Callable[[Settings, Out], int | None]
    fields: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()
    recipe: bool = False
    actions: tuple[Command, ...] = ()
    plan: Callable[[Settings], Plan] | None = None
    rarely: tuple[str, ...] = ()
    """Flags that are essential elsewhere, and here only ``--help-all`` shows."""
    loads_torch: bool = False
    """Whether it imports torch, which takes seconds."""
    lenient: bool = False
    """Whether it also runs, with the defaults, where eagle3.toml is wrong."""


def fields_of(command: Command) -> tuple[list[SettingsField], list[SettingsField]]:
    """The fields of a command: those given as flags, and those given by position."""
    arguments = [field for pattern in command.arguments for field in select(pattern)]
    flags = [field for pattern in command.fields for field in select(pattern) if field not in arguments]
    owner: dict[str, str] = {}
    for field in flags:
        for flag in field.flags:
            if owner.setdefault(flag, field.key) != field.key:
                raise ValueError(f"eagle3 {command.name}: {flag} would set both {owner[flag]} and {field.key}")
    return list(dict.fromkeys(flags)), arguments
