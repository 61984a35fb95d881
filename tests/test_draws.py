"""What `make test` draws does not depend on the tests that ran before."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st


def draws() -> list[int]:
    found: list[int] = []

    @settings(max_examples=300, database=None)
    @given(st.integers())
    def draw(number: int) -> None:
        found.append(number)

    draw()
    return found


def test_constants_of_loaded_modules_are_not_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not settings.default.derandomize:
        pytest.skip("draws other examples every time: --hypothesis-profile=fixed does not")
    before = draws()
    (tmp_path / "module_with_constants.py").write_text(f"NUMBERS = {list(range(70_000, 70_999))}\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("module_with_constants")
    assert draws() == before
