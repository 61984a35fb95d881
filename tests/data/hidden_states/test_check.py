"""Damage of every kind is found, and its place is told."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eagle3cli.data.hidden_states.check import check_store
from eagle3cli.data.hidden_states.info import describe_store, stores_below
from eagle3cli.data.hidden_states.rows import StateRow
from eagle3cli.data.hidden_states.shard import shard_name
from eagle3cli.data.hidden_states.store import Store
from eagle3cli.runtime.report import Silent
from tests.data.hidden_states.test_store import contents, fill, make_index, make_rows, states_of, writer
from tests.failing import fails


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fill(tmp_path / "store", make_rows(), "int4")
    return tmp_path / "store"


def test_a_sound_store_has_no_damage(folder: Path) -> None:
    assert check_store(Store(folder), Silent()) == []


@pytest.mark.slow
def test_any_flipped_bit_of_a_shard_is_found_and_its_row_told(folder: Path) -> None:
    path, random = folder / shard_name(2), np.random.default_rng(0)
    whole, starts = path.read_bytes(), Store(folder).shapes[2].starts
    for at in [3, 40, *random.integers(0, len(whole), 40).tolist(), len(whole) - 1]:
        spoilt = bytearray(whole)
        spoilt[at] ^= 1 << int(random.integers(8))
        path.write_bytes(spoilt)
        found = check_store(Store(folder), Silent())
        assert [damage.path for damage in found][0] == path, at
        rows = {damage.row for damage in found} - {None}
        if starts[0] <= at < starts[-1]:
            assert rows == {6 + next(i for i in range(3) if starts[i] <= at < starts[i + 1])}
            assert "checksum differs in bytes" in str(found[0])
        elif at < starts[0]:
            assert "header" in str(found[0])
        else:
            assert "table of checksums" in str(found[0])


def test_all_damaged_rows_are_told(folder: Path) -> None:
    for shard, place in ((0, 1), (3, 2)):
        path = folder / shard_name(shard)
        spoilt = bytearray(path.read_bytes())
        spoilt[Store(folder).shapes[shard].starts[place]] ^= 1
        path.write_bytes(spoilt)
    assert [(d.path.name, d.row) for d in check_store(Store(folder), Silent())] == [
        (shard_name(0), 1),
        (shard_name(3), 11),
    ]


def test_a_shard_in_the_place_of_another_is_found(folder: Path) -> None:
    """Same number of rows and the right checksums, but not what was captured."""
    other = folder.parent / "other"
    fill(other, [replace(row, token_ids=15 - row.token_ids) for row in make_rows()], "int4")
    (folder / shard_name(1)).write_bytes((other / shard_name(1)).read_bytes())
    assert "of another store" in str(check_store(Store(folder), Silent())[0])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda row: replace(row, token_ids_S=row.token_ids_S.flip(0)), "tokens and masks are not those"),
        (lambda row: replace(row, token_ids_S=row.token_ids_S + 100), "row 4: token ids outside the vocabulary of 16"),
        (lambda row: replace(row, top_R=row.top_R - 50), "row 4: top tokens outside the vocabulary of 16"),
        (lambda row: replace(row, loss_mask_S=row.loss_mask_S.roll(1)), "row 4: its counts do not fit its mask"),
        (lambda row: replace(row, loss_mask_S=row.loss_mask_S * 3), "row 4: its mask holds other values"),
    ],
)
def test_rows_that_were_written_wrong_are_found(
    tmp_path: Path, spoil: Callable[[StateRow], StateRow], said: str
) -> None:
    rows, codec = make_rows(), make_index(make_rows()).codec
    with writer(tmp_path / "store", rows) as store:
        for shard in store.pending:
            with store.writing(shard) as put:
                for n in store.layout.rows(shard):
                    row = states_of(rows[n])
                    put(n, codec.pack([spoil(row) if n == 4 else row])[0])
        store.finish()
    found = check_store(Store(tmp_path / "store"), Silent())
    assert said in str(found[0])


def test_describing_needs_no_shards(folder: Path) -> None:
    facts = describe_store(folder, Silent())
    assert facts["rows"] == 12
    assert facts["tokens"] == sum(len(row) for row in make_rows())
    assert facts["bytes"] == facts["bytes_there"] == sum(len(b) for n, b in contents(folder).items() if "shard" in n)
    (folder / shard_name(1)).unlink()
    facts = describe_store(folder, Silent())
    assert (facts["shards"], facts["shards_there"]) == (4, 3)


def test_stores_are_found_where_they_are_or_right_below(folder: Path) -> None:
    assert stores_below(folder) == stores_below(folder.parent) == [folder]
    with fails("no-store"):
        stores_below(folder.parent / "nowhere")
