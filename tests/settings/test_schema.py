"""The JSON Schema takes what the program takes, and refuses what it refuses of a single value."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from eagle3cli.settings.fields import fields
from eagle3cli.settings.packaged import recipes
from eagle3cli.settings.schema import json_schema
from eagle3cli.settings.tables import Settings
from eagle3cli.settings.toml import to_toml
from tests.conftest import ROOT
from tests.settings.test_errors import IN_FILES

VALIDATOR = jsonschema.Draft7Validator(json_schema())
NOT_IN_A_SCHEMA = ("exclude each other", "do not fit")
FILES = [*recipes().values(), *(ROOT / "examples").glob("*.toml")]


def test_it_is_a_schema() -> None:
    jsonschema.Draft7Validator.check_schema(json_schema())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_it_takes_every_file_of_ours(path: Path) -> None:
    VALIDATOR.validate(tomllib.loads(path.read_text(encoding="utf-8")))


def test_it_takes_every_default() -> None:
    VALIDATOR.validate(tomllib.loads(to_toml(Settings())))


def parsed(text: str) -> dict[str, Any] | None:
    """The values of a settings file, or None where it is no TOML."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        return None


REFUSED = [name for name, row in IN_FILES.items() if parsed(row[0]) is not None and not name.endswith(NOT_IN_A_SCHEMA)]


@pytest.mark.parametrize("mistake", REFUSED)
def test_it_refuses_the_typical_mistakes(mistake: str) -> None:
    assert not VALIDATOR.is_valid(parsed(IN_FILES[mistake][0]))


def entry(key: str) -> dict[str, Any]:
    table, name = key.split(".")
    found: dict[str, Any] = json_schema()["properties"][table]["properties"][name]
    return found


@pytest.mark.slow
def test_every_key_has_its_help_bounds_choices_and_default() -> None:
    for key, field in fields().items():
        assert entry(key)["description"] == field.help, key
    depths = {"type": "integer", "minimum": 1, "maximum": 16, "default": 7}
    assert entry("train.ttt_length") == {"description": "Depths of the training-time unroll.", **depths}
    assert entry("train.learning_rate")["exclusiveMinimum"] == 0
    assert entry("train.mode")["enum"] == ["online", "offline"]
    assert {"type": "array", "items": {"type": "string"}} in entry("prepare.source")["anyOf"]
    assert entry("view.rows")["items"] == {"type": ["string", "integer"]}
    assert entry("data.cache_dir")["default"] == "cache"
