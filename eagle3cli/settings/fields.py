"""Every settings field as a value: its key, its flags, its type and its bounds."""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic.fields import FieldInfo

from eagle3cli.settings.tables import Settings

WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}


@dataclass(frozen=True)
class SettingsField:
    """One field of one table, e.g. ``train.batch_size``."""

    table: str
    name: str
    info: FieldInfo

    @property
    def key(self) -> str:
        """``table.name``, as in ``--set``."""
        return f"{self.table}.{self.name}"

    @property
    def help(self) -> str:
        """The help text."""
        return self.info.description or ""

    @property
    def default(self) -> Any:
        """The default value."""
        return self.info.default

    @property
    def flags(self) -> tuple[str, ...]:
        """Its command-line options, the usual one first."""
        extra = self.info.json_schema_extra
        named = extra.get("flags") if isinstance(extra, dict) else None
        if isinstance(named, list):
            return tuple(str(flag) for flag in named)
        return ("--" + self.name.replace("_", "-"),)

    @property
    def bare(self) -> str | None:
        """The value of its flag where none follows; None where one must."""
        extra = self.info.json_schema_extra
        value = extra.get("bare") if isinstance(extra, dict) else None
        return value if isinstance(value, str) else None

    @cached_property
    def _union(self) -> tuple[Any, ...]:
        annotation = self.info.annotation
        if isinstance(annotation, types.UnionType) or typing.get_origin(annotation) is typing.Union:
            return typing.get_args(annotation)
        return (annotation,)

    @property
    def optional(self) -> bool:
        """Whether the field may be unset."""
        return type(None) in self._union

    @property
    def many(self) -> bool:
        """Whether it takes any number of values."""
        return typing.get_origin(self._present) is tuple

    @property
    def _present(self) -> Any:
        return next(part for part in self._union if part is not type(None))

    @property
    def type(self) -> Any:
        """The type of one value: int, float, str, bool, Path or a Literal."""
        return typing.get_args(self._present)[0] if self.many else self._present

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed words of a Literal, else nothing."""
        return tuple(map(str, typing.get_args(self.type))) if typing.get_origin(self.type) is Literal else ()

    def bound(self, name: str) -> Any:
        """The bound ``ge``, ``gt``, ``le`` or ``lt``, or None."""
        return next((getattr(m, name) for m in self.info.metadata if hasattr(m, name)), None)

    @property
    def bounds(self) -> str:
        """The bounds in words: ``at least 1, below 10``; empty where there are none."""
        words = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}
        return ", ".join(f"{word} {self.bound(name):g}" for name, word in words.items() if self.bound(name) is not None)

    @property
    def allowed(self) -> str:
        """What may be given, in words: ``a whole number, at least 1``."""
        one = " or ".join(self.choices) or WORDS.get(self.type, "a value")
        return ", ".join(filter(None, [f"a list, each {one}" if self.many else one, self.bounds]))


@lru_cache(maxsize=1)
def fields() -> dict[str, SettingsField]:
    """All fields by their key, in the order of the tables."""
    found = {}
    for table, info in Settings.model_fields.items():
        model = info.annotation
        assert model is not None
        for name, field in model.model_fields.items():
            found[f"{table}.{name}"] = SettingsField(table, name, field)
    return found


def tables() -> dict[str, str]:
    """The tables by name, each with its one-line description."""
    return {name: (info.annotation.__doc__ or "") for name, info in Settings.model_fields.items() if info.annotation}


def select(pattern: str) -> list[SettingsField]:
    """The fields that ``table.name`` or ``table.*`` stands for; raises KeyError where there is none."""
    table, _, name = pattern.partition(".")
    chosen = [f for f in fields().values() if f.table == table and name in ("*", f.name)]
    if not chosen:
        raise KeyError(pattern)
    return chosen
