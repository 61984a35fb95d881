"""Settings written as TOML and read back; the line of each value."""

from __future__ import annotations

import tomllib
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.settings.fields import fields, tables
from eagle3cli.settings.load import load
from eagle3cli.settings.tables import Settings
from eagle3cli.settings.toml import Entry, commented_toml, literal, read_toml, to_toml

TEXT = st.text(st.characters(blacklist_categories=["Cs"]))
VALUES = st.one_of(
    TEXT,
    st.booleans(),
    st.integers(-(2**62), 2**62),
    st.floats(allow_nan=False),
    st.lists(TEXT),
    st.lists(st.integers(0, 9)),
)


def read(tmp_path: Path, text: str) -> list[Entry]:
    path = tmp_path / "a.toml"
    path.write_text(text)
    return read_toml(path)


@given(VALUES)
def test_a_literal_reads_back_as_it_was(value: object) -> None:
    assert tomllib.loads(f"x = {literal(value)}")["x"] == value


def test_settings_as_used_read_back_the_same(tmp_path: Path) -> None:
    odd = 'a "quoted" \\ name\n\t\x7f ü 你'
    settings = Settings.model_validate(
        {
            "target": {"model_path": odd},
            "draft": {"aux_layers": (1, 2, 3)},
            "data": {"train_path": "a b.jsonl"},
            "train": {"learning_rate": 1e-7, "total_steps": 5, "resume": False},
            "bench": {"config_list": ("1,0,0,0",)},
        }
    )
    path = tmp_path / "settings.toml"
    path.write_text(to_toml(settings), encoding="utf-8")
    assert load([path]).settings == settings


def test_the_commented_file_is_valid_and_sets_nothing(tmp_path: Path) -> None:
    path = tmp_path / "eagle3.toml"
    path.write_text(commented_toml())
    loaded = load([path])
    assert loaded.settings == Settings()
    assert not loaded.origins


def test_the_commented_file_uncommented_says_the_defaults() -> None:
    lines = [line[2:] if line.startswith("# ") and " = " in line else line for line in commented_toml().splitlines()]
    parsed = tomllib.loads(
        "\n".join(line for line in lines if not line.endswith("= ...") and not line.startswith("# "))
    )
    assert set(parsed) == set(tables())
    assert Settings.model_validate(parsed) == Settings()


def test_each_value_knows_its_line(tmp_path: Path) -> None:
    text = """# a comment with = and [brackets]
top.inner = 1

[train]  # here
seed = 1
text = '''
[view]
seed = 7
'''
list = [
  1,
  # not.a = key
  2,
]
point = {x = 1, y = 2}
[ view ]
"quoted key" = true
[[many]]
a = 1
"""
    found = {".".join(entry.key): (entry.line, entry.value) for entry in read(tmp_path, text)}
    assert found == {
        "top.inner": (2, 1),
        "train": (4, None),
        "train.seed": (5, 1),
        "train.text": (6, "[view]\nseed = 7\n"),
        "train.list": (10, [1, 2]),
        "train.point": (15, {"x": 1, "y": 2}),
        "view": (16, None),
        "view.quoted key": (17, True),
        "many": (18, None),
        "many.a": (19, 1),
    }


def test_every_field_has_help_and_says_what_is_allowed() -> None:
    for field in fields().values():
        assert field.help.endswith("."), field.key
        assert field.allowed
        assert field.flags[0].startswith("--")
