"""Every settings field as a value: its key, its flags, its type and its bounds."""

from __future__ import annotations

import types
import typing
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from pydantic.fields import FieldInfo

from eagle3cli.settings.table import Table
from eagle3cli.settings.tables import Settings

TYPE_TEXTS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}
BOUND_TEXTS = {"ge": "at least", "gt": "above", "le": "at most", "lt": "below"}


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

    def value(self, settings: Settings) -> Any:
        """Its value in ``settings``."""
        return getattr(getattr(settings, self.table), self.name)

    @property
    def _extra(self) -> dict[str, Any]:
        extra = self.info.json_schema_extra
        return extra if isinstance(extra, dict) else {}

    @property
    def flags(self) -> tuple[str, ...]:
        """Its command-line options, the usual one first."""
        return tuple(self._extra.get("flags", ())) or ("--" + self.name.replace("_", "-"),)

    @property
    def bare(self) -> str | None:
        """The value of its flag where none follows; None where one must."""
        return self._extra.get("bare")

    @cached_property
    def _union(self) -> tuple[Any, ...]:
        annotation = self.info.annotation
        if typing.get_origin(annotation) in (types.UnionType, typing.Union):
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
        one = typing.get_args(self._present)[0] if self.many else self._present
        return typing.get_args(one)[0] if typing.get_origin(one) is typing.Annotated else one

    @property
    def is_path(self) -> bool:
        """Whether its values are paths."""
        return self.type is Path

    @property
    def words(self) -> tuple[str, ...]:
        """Words that may stand where a number does, as ``auto``."""
        parts = () if self.many else self._union
        return tuple(str(word) for part in parts if part is not self._present for word in _literal(part))

    @property
    def choices(self) -> tuple[str, ...]:
        """The allowed words of a Literal, else nothing."""
        return tuple(map(str, _literal(self.type)))

    def bound(self, name: str) -> Any:
        """The bound ``ge``, ``gt``, ``le`` or ``lt``, or None."""
        metadata = [*self.info.metadata, *getattr(self._present, "__metadata__", ())]
        metadata += [m for info in metadata for m in getattr(info, "metadata", ())]
        return next((getattr(m, name) for m in metadata if hasattr(m, name)), None)

    @property
    def bounds(self) -> str:
        """The bounds in words: ``at least 1, below 10``; empty where there are none."""
        texts = BOUND_TEXTS.items()
        return ", ".join(f"{text} {self.bound(name):g}" for name, text in texts if self.bound(name) is not None)

    @property
    def allowed(self) -> str:
        """What may be given, in words: ``a whole number, at least 1``."""
        one = " or ".join(self.choices) or TYPE_TEXTS.get(self.type, "a value")
        text = ", ".join(filter(None, [f"a list, each {one}" if self.many else one, self.bounds]))
        return ", or ".join([text, *self.words])


def _literal(kind: Any) -> tuple[Any, ...]:
    return typing.get_args(kind) if typing.get_origin(kind) is Literal else ()


def _tables() -> dict[str, type[Table]]:
    return {name: info.annotation for name, info in Settings.model_fields.items() if isinstance(info.annotation, type)}


@lru_cache(maxsize=1)
def fields() -> dict[str, SettingsField]:
    """All fields by their key, in the order of the tables."""
    every = [
        SettingsField(t, name, info) for t, table in _tables().items() for name, info in table.model_fields.items()
    ]
    return {field.key: field for field in every}


def fields_of_table(table: str) -> list[SettingsField]:
    """The fields of one table, in their order."""
    return [field for field in fields().values() if field.table == table]


def tables() -> dict[str, str]:
    """The tables by name, each with its one-line description."""
    return {name: table.__doc__ or "" for name, table in _tables().items()}


def select(pattern: str) -> list[SettingsField]:
    """The fields that ``table.name`` or ``table.*`` stands for; raises KeyError where there is none."""
    table, _, name = pattern.partition(".")
    selected = [field for field in fields_of_table(table) if name in ("*", field.name)]
    if not selected:
        raise KeyError(pattern)
    return selected
