"""What every settings table is made of: a frozen pydantic model, and a field that a flag is generated from.

Nothing in this folder imports torch. ``flag`` names the command-line option where it differs from ``--field-name``.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Table(BaseModel):
    """A frozen settings table that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


def option(default: Any, help: str, *flags: str, bare: str | None = None, **bounds: Any) -> Any:
    """A field with its help text and, where they differ from the field's name, its flags.

    ``bare`` is the value of a flag that stands without one.
    """
    extra: dict[str, Any] = {"flags": list(flags)} if flags else {}
    extra |= {"bare": bare} if bare is not None else {}
    return Field(default, description=help, json_schema_extra=extra or None, **bounds)


ComputeType = Literal["auto", "float32", "bfloat16", "fastest"]
