"""The hidden-state store: rows come back bit for bit, and nothing damaged, foreign or half-written is ever read."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.data.rows import TokenRow
from eagle3cli.data.store import StateRow, Store, StoreMeta, aux_count, shard_name, teacher_positions, vocab_hash
from eagle3cli.data.store_writer import Plan, StoreWriter, discard_store, plan_store
from eagle3cli.data.vocab import from_ids
from eagle3cli.errors import DataError, Eagle3Error, ModelError, UsageError
from eagle3cli.runtime.report import Silent

HIDDEN, LAYERS = 8, (1, 3, 4)
VOCAB = from_ids([1, 5, 6, 11], 16)


def make_rows(count: int = 12, seed: int = 0) -> list[TokenRow]:
    random = np.random.default_rng(seed)
    rows = []
    for i in range(count):
        length = int(random.integers(8, 40))
        mask = np.zeros(length, dtype=np.uint8)
        if i % 5 != 3:  # every fifth row has nothing to learn
            begin = int(random.integers(1, length - 3))
            mask[begin : begin + int(random.integers(1, length - begin))] = 1
        rows.append(TokenRow(str(i), random.integers(0, 16, length).astype(np.int32), mask))
    return rows


def states_of(row: TokenRow) -> StateRow:
    """States that depend on the row alone, so that a second capture gives the same."""
    random = torch.Generator().manual_seed(int(row.token_ids.sum()))
    mask = torch.from_numpy(row.loss_mask.astype(bool))
    where = teacher_positions(mask)
    return StateRow(
        token_ids_S=torch.from_numpy(row.token_ids.astype("int64")),
        loss_mask_S=mask,
        aux_UC=torch.randn(aux_count(where), HIDDEN * len(LAYERS), generator=random).bfloat16(),
        last_RH=torch.randn(len(where), HIDDEN, generator=random).bfloat16(),
        top_R=torch.randint(0, 16, (len(where),), generator=random),
    )


def make_plan(rows: list[TokenRow], shard_rows: int = 3) -> Plan:
    """A plan with ``shard_rows`` rows a shard, which for rows this small no size in MB would give."""
    plan = plan_store(rows, hidden_size=HIDDEN, aux_layers=len(LAYERS), shard_mb=1)
    return replace(plan, starts=(*range(0, len(rows), shard_rows), len(rows)))


def make_meta(plan: Plan, rows: list[TokenRow]) -> StoreMeta:
    return StoreMeta(
        target="some/target",
        target_hash="abc",
        aux_layers=LAYERS,
        hidden_size=HIDDEN,
        vocab_size=16,
        compute_dtype="float32",
        data_hash=plan.data_hash,
        rows=len(rows),
        vocab_hash=vocab_hash(VOCAB),
        shard_mb=1,
    )


def fill(folder: Path, rows: list[TokenRow], *, at_most: int | None = None, report: Silent | None = None) -> None:
    plan = make_plan(rows)
    with StoreWriter(folder, make_meta(plan, rows), plan, VOCAB, report or Silent()) as writer:
        for shard in writer.pending[:at_most]:
            writer.write(shard, [states_of(rows[n]) for n in plan.shard_rows(shard)])
        if not writer.pending and not writer.complete:
            writer.finish()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(st.lists(st.integers(0, 1), min_size=1, max_size=30))
def test_teacher_positions_are_the_neighbours_of_loss(mask: list[int]) -> None:
    found = set(teacher_positions(torch.tensor(mask)).tolist())
    padded = [0, *mask, 0]
    assert found == {t for t in range(len(mask)) if padded[t] or padded[t + 2]}


def test_rows_come_back_bit_for_bit_in_any_order(tmp_path: Path) -> None:
    rows = make_rows()
    fill(tmp_path / "store", rows)
    store = Store(tmp_path / "store")
    assert len(store) == len(rows)
    assert store.lengths == [len(row) for row in rows]
    assert store.meta.aux_layers == LAYERS
    assert torch.equal(store.vocab.d2t, VOCAB.d2t)
    assert torch.equal(store.vocab.t2d, VOCAB.t2d)
    for index in (7, 0, 11, 3, 3, 8):
        wanted, found = states_of(rows[index]), store[index]
        for name, value in vars(wanted).items():
            assert torch.equal(getattr(found, name), value), (index, name)
            assert getattr(found, name).dtype == value.dtype
    with pytest.raises(IndexError):
        store[12]


def test_aux_rms_is_that_of_the_stored_states(tmp_path: Path) -> None:
    rows = make_rows()
    fill(tmp_path / "store", rows)
    aux = torch.cat([states_of(row).aux_UC.float() for row in rows])
    torch.testing.assert_close(Store(tmp_path / "store").aux_rms_C, aux.square().mean(0).sqrt(), rtol=1e-5, atol=0)


def test_the_forecast_is_the_size(tmp_path: Path) -> None:
    rows = make_rows(60)
    fill(tmp_path / "store", rows)
    written = 0
    for path in (tmp_path / "store").glob("shard_*"):
        blob = path.read_bytes()
        written += len(blob) - 8 - int.from_bytes(blob[:8], "little")  # without safetensors' header
    assert sum(make_plan(rows).bytes_per_row) == written


def test_shards_are_cut_by_size() -> None:
    mask = np.ones(1000, dtype=np.uint8)
    rows = [TokenRow(str(i), np.zeros(1000, dtype=np.int32), mask) for i in range(10)]
    plan = plan_store(rows, hidden_size=128, aux_layers=3, shard_mb=3)
    assert plan.bytes_per_row[0] == 1000 * 5 + 999 * 768 + 1000 * 260
    assert plan.starts == (0, 2, 4, 6, 8, 10)
    one_each = plan_store(rows, hidden_size=4096, aux_layers=3, shard_mb=1)
    assert one_each.shards == 10


@pytest.mark.parametrize("shards", [0, 1, 3])
def test_a_resumed_store_is_byte_for_byte_an_uninterrupted_one(tmp_path: Path, shards: int) -> None:
    rows = make_rows()
    fill(tmp_path / "whole", rows)
    fill(tmp_path / "resumed", rows, at_most=shards)
    (tmp_path / "resumed" / f".{shard_name(9)}.tmp-123").write_bytes(b"half a shard")
    with pytest.raises(DataError, match=f"not finished: {shards} of 4 shards"):
        Store(tmp_path / "resumed")
    fill(tmp_path / "resumed", rows)
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")


def test_a_shard_that_the_manifest_does_not_know_is_written_again(tmp_path: Path) -> None:
    rows = make_rows()
    fill(tmp_path / "whole", rows)
    fill(tmp_path / "resumed", rows, at_most=1)
    (tmp_path / "resumed" / shard_name(1)).write_bytes(b"killed between the shard and the manifest")
    fill(tmp_path / "resumed", rows)
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")


def test_a_flipped_byte_is_found_and_only_that_shard_is_captured_again(tmp_path: Path) -> None:
    rows, folder = make_rows(), tmp_path / "store"
    fill(folder, rows)
    before = contents(folder)
    spoilt = bytearray(before[shard_name(2)])
    spoilt[-5] ^= 1
    (folder / shard_name(2)).write_bytes(spoilt)
    report = Silent()
    fill(folder, rows, report=report)
    assert len(report.warnings) == 1
    assert shard_name(2) in report.warnings[0]
    assert "checksum" in report.warnings[0]
    assert contents(folder) == before


@pytest.mark.parametrize("name", [shard_name(1), "index.safetensors", "stats.safetensors"])
def test_a_missing_or_cut_off_file_is_named(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "store"
    fill(folder, make_rows())
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[:-1])
    with pytest.raises(DataError, match=name):
        Store(folder)
    (folder / name).unlink()
    with pytest.raises(DataError, match=name):
        Store(folder)
    fill(folder, make_rows())
    assert (folder / name).read_bytes() == whole


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target_hash": "xyz"}, "the target's config or weights differ"),
        ({"aux_layers": (0, 3, 4)}, "aux_layers"),
        ({"vocab_hash": "other"}, "tokens of the draft vocabulary differ"),
        ({"compute_dtype": "bfloat16"}, "compute_dtype: float32 there, bfloat16 now"),
    ],
)
def test_another_capture_is_never_mixed_in(tmp_path: Path, changes: dict[str, object], said: str) -> None:
    rows, folder = make_rows(), tmp_path / "store"
    fill(folder, rows, at_most=1)
    before, plan = contents(folder), make_plan(rows)
    with pytest.raises(DataError, match=said) as caught:
        StoreWriter(folder, replace(make_meta(plan, rows), **changes), plan, VOCAB, Silent())
    assert "--output-path" in str(caught.value)
    assert contents(folder) == before


def test_other_data_are_never_mixed_in(tmp_path: Path) -> None:
    fill(tmp_path / "store", make_rows(), at_most=1)
    with pytest.raises(DataError, match="tokens or masks differ"):
        fill(tmp_path / "store", make_rows(seed=1))


def test_a_moved_target_goes_on(tmp_path: Path) -> None:
    rows, folder = make_rows(), tmp_path / "store"
    fill(folder, rows, at_most=1)
    plan = make_plan(rows)
    with StoreWriter(folder, replace(make_meta(plan, rows), target="elsewhere"), plan, VOCAB, Silent()) as writer:
        assert writer.pending == [1, 2, 3]


def test_two_captures_do_not_write_at_once(tmp_path: Path) -> None:
    rows, folder = make_rows(), tmp_path / "store"
    plan = make_plan(rows)
    with (
        StoreWriter(folder, make_meta(plan, rows), plan, VOCAB, Silent()),
        pytest.raises(Eagle3Error, match="another capture"),
    ):
        StoreWriter(folder, make_meta(plan, rows), plan, VOCAB, Silent())
    fill(folder, rows)
    assert len(Store(folder)) == len(rows)


def test_folders_that_are_no_store(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no hidden-state store"):
        Store(tmp_path)
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UsageError, match=r"letter\.txt"):
        fill(tmp_path, make_rows())
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "meta": {}}))
    with pytest.raises(DataError, match="not a manifest of hidden states"):
        Store(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 99, "meta": {}}))
    with pytest.raises(DataError, match="format 99"):
        Store(tmp_path)


def test_discard_removes_the_store_and_nothing_else(tmp_path: Path) -> None:
    fill(tmp_path, make_rows())
    (tmp_path / "letter.txt").write_text("dear")
    discard_store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_states_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    rows = make_rows()
    plan = make_plan(rows)
    with StoreWriter(tmp_path / "store", make_meta(plan, rows), plan, VOCAB, Silent()) as writer:
        states = [states_of(rows[n]) for n in plan.shard_rows(0)]
        states[0].aux_UC[0, 0] = float("inf")
        with pytest.raises(ModelError, match="not finite in rows 0 to 2"):
            writer.write(0, states)


def test_reading_a_row_does_not_load_its_shard(tmp_path: Path) -> None:
    rows, folder = make_rows(), tmp_path / "store"
    fill(folder, rows)
    store = Store(folder)
    wanted = states_of(rows[0])
    path = folder / shard_name(0)
    spoilt = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(spoilt[:8], "little")
    begin, _ = json.loads(spoilt[8:header])["aux"]["data_offsets"]
    row_bytes = len(wanted.aux_UC) * HIDDEN * len(LAYERS) * 2
    spoilt[header + begin + row_bytes] ^= 0xFF  # the next row's first byte
    path.write_bytes(spoilt)
    assert torch.equal(store[0].aux_UC, wanted.aux_UC)
    assert not torch.equal(store[1].aux_UC, states_of(rows[1]).aux_UC)
