"""Settings as a command line."""

from __future__ import annotations

from collections.abc import Iterable

from eagle3cli.settings.fields import select
from eagle3cli.settings.tables import Settings


def to_argv(settings: Settings, patterns: Iterable[str]) -> list[str]:
    """The flags that give these fields (``train.*``, ``data.train_path``) their values; those at their default are
    left out."""
    defaults = Settings()
    argv: list[str] = []
    for field in dict.fromkeys(field for pattern in patterns for field in select(pattern)):
        value = field.value(settings)
        if value == field.value(defaults):
            continue
        flag = field.flags[0]
        if isinstance(value, bool):
            argv.append(flag if value else f"--no-{flag.removeprefix('--')}")
        else:
            argv += [flag, *map(str, value if isinstance(value, tuple) else (value,))]
    return argv
