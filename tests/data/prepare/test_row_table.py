from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.data.conversations.conversation import Conversation
from eagle3cli.data.prepare import row_table
from eagle3cli.data.prepare.row_table import DUPLICATE, HELD_OUT, KEPT, RowTable, signed, work_folder


def add(rows: RowTable, name: str, prompt: str) -> None:
    rows.add(Conversation("", ({"role": "user", "content": prompt},)), name, 0, len(rows))


def test_rows_are_there_in_order_however_many_are_written_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_table, "_BATCH", 3)
    with RowTable(tmp_path, 0) as rows:
        for number in range(10):
            add(rows, f"r{number}", "hi")
            rows.add_bands([number, -number])
        assert len(rows) == 10
        assert rows.run("SELECT row, line FROM rows ORDER BY row").fetchall() == [(i, i) for i in range(10)]
        assert rows.run("SELECT key, row FROM bands WHERE row = 7").fetchall() == [(7, 7), (-7, 7)]
        rows.mark(range(2, 5), DUPLICATE)
        rows.mark([9], HELD_OUT)
        assert (rows.count(KEPT), rows.count(DUPLICATE, HELD_OUT), rows.count(KEPT, first=4, end=7)) == (6, 4, 2)


def test_a_repeated_id_is_marked_in_the_result_only(tmp_path: Path) -> None:
    with RowTable(tmp_path, 0) as rows:
        for name in ("a", "b", "a", "a", "b"):
            add(rows, name, "hi")
        rows.mark([0], DUPLICATE)
        rows.mark([4], HELD_OUT)
        rows.mark_repeated_names()
        assert rows.run("SELECT row FROM rows WHERE renamed").fetchall() == [(3,), (4,)]


@given(st.lists(st.integers(0, 2**64 - 1)))
def test_signed_numbers_are_in_the_order_of_the_unsigned(numbers: list[int]) -> None:
    values = np.array(numbers, np.uint64)
    assert np.argsort(signed(values), kind="stable").tolist() == np.argsort(values, kind="stable").tolist()


def test_a_full_disk_is_an_error_of_the_disk(tmp_path: Path) -> None:
    def fill() -> None:
        with RowTable(tmp_path, 0) as rows:
            rows.run("PRAGMA max_page_count = 20")
            for number in range(20_000):
                add(rows, f"r{number}", f"q{number}")

    with pytest.raises(OSError, match="No space left") as error:
        fill()
    assert error.value.errno == errno.ENOSPC
    assert isinstance(error.value.__cause__, sqlite3.OperationalError)


def test_a_work_folder_and_all_in_it_are_gone_at_the_end(tmp_path: Path) -> None:
    before = os.environ.get("SQLITE_TMPDIR")
    with work_folder(tmp_path) as work, RowTable(work, 0) as rows:
        add(rows, "a", "hi")
        assert os.environ["SQLITE_TMPDIR"] == str(work)
    assert not list(tmp_path.iterdir())
    assert os.environ.get("SQLITE_TMPDIR") == before
