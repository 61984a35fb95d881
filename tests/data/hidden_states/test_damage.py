"""Damaged files of a hidden-state store are named, and captured again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eagle3cli.data.hidden_states.shard import shard_name
from eagle3cli.data.hidden_states.store import Store
from tests.data.hidden_states.test_store import contents, fill, make_rows, states_of, writer
from tests.failing import fails


def test_a_flipped_byte_is_noticed_when_the_row_is_read(tmp_path: Path) -> None:
    rows, folder = make_rows(), tmp_path / "store"
    fill(folder, rows)
    path = folder / shard_name(2)
    begin, end = Store(folder).shard(2).place(1)
    spoilt = bytearray(path.read_bytes())
    spoilt[end - 20] ^= 1
    path.write_bytes(spoilt)
    store = Store(folder)
    assert torch.equal(store[6].aux_UC, states_of(rows[6]).aux_UC)
    with fails("damaged-store", begin, end) as caught:
        store[7]
    assert shard_name(2) in str(caught.value)


def test_a_damaged_table_of_checksums_is_captured_again(tmp_path: Path) -> None:
    rows, folder = make_rows(), tmp_path / "store"
    fill(folder, rows)
    before = contents(folder)
    spoilt = bytearray(before[shard_name(2)])
    spoilt[-5] ^= 1
    (folder / shard_name(2)).write_bytes(spoilt)
    with writer(folder, rows) as found:
        assert found.pending == [2]
    fill(folder, rows)
    assert contents(folder) == before


@pytest.mark.parametrize("name", [shard_name(1), "index.safetensors"])
def test_a_missing_or_cut_off_file_is_named(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "store"
    fill(folder, make_rows())
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:-1])
    with fails("damaged-store", name):
        Store(folder)
    (folder / name).unlink()
    with fails("damaged-store", name):
        Store(folder)
    fill(folder, make_rows())
    assert (folder / name).read_bytes() == whole
