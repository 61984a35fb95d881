"""Every setting stands in one group, and the help, the file of config init and the schema show the same ones."""

from __future__ import annotations

import re
import tomllib

from eagle3cli.settings.fields import fields_of_table, select, tables
from eagle3cli.settings.groups import AGAIN, ESSENTIAL, GROUPS, grouped, groups_of_table
from eagle3cli.settings.schema import GROUPS as SHOWN
from eagle3cli.settings.schema import json_schema
from eagle3cli.settings.toml import commented_toml


def test_every_field_stands_in_one_group_of_its_table() -> None:
    assert list(GROUPS) == list(tables())
    for table in tables():
        named = [name for names in GROUPS[table].values() for name in names.split()]
        assert sorted(named) == sorted(field.name for field in fields_of_table(table)), table
        assert next(iter(GROUPS[table])) == ESSENTIAL


def test_essential_ones_come_first_and_what_is_done_again_last() -> None:
    chosen = [field for pattern in ("train.*", "data.*", "target.*") for field in select(pattern)]
    titles = grouped(chosen)
    assert list(titles)[0] == ESSENTIAL
    assert list(titles)[-1] == AGAIN
    assert [field.key for field in titles[ESSENTIAL]][:2] == ["target.model_path", "data.train_path"]
    assert sorted(field.key for members in titles.values() for field in members) == sorted(f.key for f in chosen)


def test_the_written_file_shows_them_in_their_order() -> None:
    text = commented_toml()
    places = [(table, title) for table in tables() for title in groups_of_table(table)]
    shown = re.findall(r"^(?:\[(\w+)\]|# --- (.*) ---)$", text, re.MULTILINE)
    table = ""
    found = []
    for header, title in shown:
        table = header or table
        found += [(table, title)] if title else []
    assert found == places
    names = re.findall(r"^# (\w+) = ", text.partition("[train]")[2].partition("[launch]")[0], re.MULTILINE)
    assert names == [field.name for members in groups_of_table("train").values() for field in members]
    assert not any(tomllib.loads(text).values())


def test_the_schema_names_them() -> None:
    properties = json_schema()["properties"]
    for table, titles in GROUPS.items():
        assert properties[table][SHOWN] == {title: names.split() for title, names in titles.items()}
        assert list(properties[table]["properties"]) == " ".join(titles.values()).split()
