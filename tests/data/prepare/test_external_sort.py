from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from eagle3cli.data.prepare.external_sort import Records

DTYPE = np.dtype([("key", "u8"), ("row", "u4"), ("share", "f4")])


@settings(max_examples=80, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 3), max_size=200), st.integers(1, 9), st.booleans())
def test_sorted_records_are_those_of_a_stable_sort(tmp_path: Path, keys: list[int], held: int, whole: bool) -> None:
    records = Records(DTYPE, tmp_path, memory=held * DTYPE.itemsize)
    block = np.array([(key, row, row / 2) for row, key in enumerate(keys)], DTYPE)
    if whole:
        records.extend(block)
    else:
        for row, key in enumerate(keys):
            records.append(key, row, row / 2)
    assert len(records) == len(keys)
    assert np.array_equal(np.concatenate([*records.blocks(), block[:0]]), block)
    for _ in range(2):
        found = [(int(r["key"]), int(r["row"])) for part in records.sorted_by("key") for r in part]
        assert found == sorted(zip(keys, range(len(keys)), strict=True))
    assert [int(records[row]["key"]) for row in range(len(keys))] == keys
    records.append(1, 2, 3)
    assert records[len(keys)].tolist() == (1, 2, 3)
    records.close()


def test_records_of_other_fields_are_taken_by_name(tmp_path: Path) -> None:
    records = Records(np.dtype([("row", "u8")]), tmp_path)
    records.extend(np.array([(5, 1, 0), (6, 2, 0)], DTYPE))
    assert [int(r["row"]) for part in records.blocks() for r in part] == [1, 2]


def test_the_file_has_no_name(tmp_path: Path) -> None:
    records = Records(DTYPE, tmp_path, memory=DTYPE.itemsize)
    for row in range(10):
        records.append(row, row, 0)
    assert not list(tmp_path.iterdir())
    records.close()
    with pytest.raises(AssertionError):
        records[0]
