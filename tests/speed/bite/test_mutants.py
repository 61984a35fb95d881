"""The mutants of a small module: what is changed, what never is, and that an id survives edits elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.speed.bite.areas import AREAS, files
from tests.speed.bite.mutants import draw, mutants_of

ROOT = Path(__file__).resolve().parents[3]
SOURCE = b"""
def kept(value: int, limit: int = 3) -> bool:
    if value < limit and value != 0:
        print("small", 1)
        return True
    raise ValueError(f"{value + 1}")
"""


def test_one_change_each_and_none_to_words_or_errors() -> None:
    found = {(mutant.old, mutant.new) for mutant in mutants_of("m.py", SOURCE)}
    assert found == {("3", "4"), ("<", "<="), ("and", "or"), ("!=", "=="), ("0", "1"), ("True", "False")} | {
        ("value < limit and value != 0", "not (value < limit and value != 0)"),
        ("True", "None"),
    }


def test_an_id_names_the_same_change_after_an_edit_elsewhere() -> None:
    edited = b"\n\nTABLE = (1, 2)\n\n\ndef other() -> int:\n    return 2\n\n" + SOURCE
    before = {mutant.id: mutant.of(SOURCE) for mutant in mutants_of("m.py", SOURCE)}
    after = {mutant.id: mutant.of(edited) for mutant in mutants_of("m.py", edited)}
    assert before.keys() < after.keys()
    assert all(after[name].endswith(text.strip(b"\n") + b"\n") for name, text in before.items())


@pytest.mark.slow
def test_a_draw_is_equal_by_area_and_the_same_again() -> None:
    paths = {area: files(ROOT, area)[:1] for area in AREAS}
    drawn = draw(ROOT, paths, 24, seed=1)
    assert [mutant.area for mutant in drawn] == [area for area in AREAS for _ in range(2)]
    assert drawn == draw(ROOT, paths, 24, seed=1)
