"""The hidden-state store: rows come back bit for bit, and nothing damaged, foreign or half-written is ever read."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from eagle3cli.data.hidden_states.quantize import QUANTIZATIONS, Quantization, relative_error
from eagle3cli.data.hidden_states.rows import StateRow, aux_count, count_rows, row_codec, teacher_positions
from eagle3cli.data.hidden_states.shard import shard_name
from eagle3cli.data.hidden_states.store import Index, Store, StoreMeta, shard_shapes, vocab_hash
from eagle3cli.data.hidden_states.writer import StoreLayout, StoreWriter, discard_store, plan_layout, read_existing
from eagle3cli.data.tokens.rows import TokenRow
from eagle3cli.data.tokens.vocab import from_ids
from eagle3cli.runtime.report import Silent
from eagle3cli.training.ttt.unroll import masked_positions
from tests.failing import fails

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


def make_index(rows: list[TokenRow], encoding: Quantization = "bf16") -> Index:
    sample = [states_of(row) for row in rows]
    aux, last = torch.cat([row.aux_UC for row in sample]), torch.cat([row.last_RH for row in sample])
    return Index(count_rows(rows), row_codec(encoding, layers=3, hidden=HIDDEN, aux_RC=aux, last_RH=last), VOCAB)


def make_plan(index: Index, shard_rows: int = 3) -> StoreLayout:
    """A plan with ``shard_rows`` rows a shard, which for rows this small no size in MB would give."""
    plan = plan_layout(index.counts, index.codec, shard_mb=1)
    rows = len(plan.bytes_per_row)
    return replace(plan, starts=(*range(0, rows, shard_rows), rows))


def make_meta(index: Index, encoding: Quantization = "bf16") -> StoreMeta:
    return StoreMeta(
        target="some/target",
        revision=None,
        target_hash="abc",
        aux_layers=LAYERS,
        hidden_size=HIDDEN,
        vocab_size=16,
        compute_dtype="float32",
        data_hash=index.counts.data_hash,
        rows=len(index.counts.counts_N3),
        vocab_hash=vocab_hash(VOCAB),
        shard_mb=1,
        encoding=encoding,
    )


def writer(folder: Path, rows: list[TokenRow], encoding: Quantization = "bf16", **other: Any) -> StoreWriter:
    index = make_index(rows, encoding)
    meta = replace(make_meta(index, encoding), **other.pop("meta", {}))
    return StoreWriter(folder, meta, make_plan(index), index, other.pop("report", Silent()), **other)


def fill(
    folder: Path, rows: list[TokenRow], encoding: Quantization = "bf16", *, at_most: int | None = None, **other: Any
) -> None:
    codec = make_index(rows, encoding).codec
    with writer(folder, rows, encoding, **other) as store:
        for shard in store.pending[:at_most]:
            with store.writing(shard) as put:
                for n in reversed(store.layout.rows(shard)):
                    put(n, codec.pack([states_of(rows[n])])[0])
        if at_most is None and not store.complete and other.get("rank", 0) == 0:
            store.finish()


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@given(st.lists(st.integers(0, 1), min_size=1, max_size=30), st.integers(1, 8))
def test_what_is_kept_is_what_some_loss_reads(mask: list[int], depths: int) -> None:
    """Against the rows that training keeps, in both alignments: their teachers, and all rows up to the last one."""
    mask_S = torch.tensor(mask).bool()
    teacher = teacher_positions(mask_S)
    read, last_row = set(), -1
    for alignment in ("serving", "specforge"):
        for depth, kept in enumerate(masked_positions(mask_S, (0, len(mask)), depths, alignment)):
            rows = kept.nonzero()[:, 0].tolist()
            read |= {row + 1 + depth for row in rows}
            last_row = max([last_row, *rows])
    assert set(teacher.tolist()) == read
    assert aux_count(teacher) == last_row + 1


@pytest.mark.parametrize("encoding", QUANTIZATIONS)
def test_rows_come_back_in_any_order(tmp_path: Path, encoding: Quantization) -> None:
    rows = make_rows()
    fill(tmp_path / "store", rows, encoding)
    store = Store(tmp_path / "store")
    assert len(store) == len(rows)
    assert store.lengths == [len(row) for row in rows]
    assert store.meta.aux_layers == LAYERS
    assert torch.equal(store.vocab.d2t, VOCAB.d2t)
    assert torch.equal(store.vocab.t2d, VOCAB.t2d)
    for index in (7, 0, 11, 3, 3, 8):
        wanted, found = states_of(rows[index]), store[index]
        for name, value in vars(wanted).items():
            if encoding != "bf16" and name in ("aux_UC", "last_RH"):
                assert getattr(found, name).shape == value.shape
                assert relative_error(value, getattr(found, name)) < 0.2
                continue
            assert torch.equal(getattr(found, name), value), (index, name)
            assert getattr(found, name).dtype == value.dtype
    with pytest.raises(IndexError):
        store[12]


@pytest.mark.parametrize("encoding", QUANTIZATIONS)
def test_the_forecast_is_the_size(tmp_path: Path, encoding: Quantization) -> None:
    rows = make_rows(60)
    fill(tmp_path / "store", rows, encoding)
    written = 0
    for path in (tmp_path / "store").glob("shard_*"):
        blob = path.read_bytes()
        written += len(blob) - 8 - int.from_bytes(blob[:8], "little")  # without safetensors' header
    assert make_plan(make_index(rows, encoding)).total == written


def test_shards_are_safetensors(tmp_path: Path) -> None:
    rows = make_rows()
    fill(tmp_path / "store", rows)
    tensors = load_file(tmp_path / "store" / shard_name(1))
    store = Store(tmp_path / "store")
    size = store.shapes[1].sizes[0]
    assert torch.equal(store.codec.unpack(tensors["rows"][:size], store.counts_N3[3].tolist()).aux[0], store[3].aux_UC)
    assert zlib.crc32(tensors["rows"][:size].numpy().tobytes()) == int(tensors["checks"][0])


def test_shards_of_text_have_the_headers_of_versions_that_knew_no_images(tmp_path: Path) -> None:
    rows = make_rows()
    fill(tmp_path / "store", rows)
    store = Store(tmp_path / "store")
    index = make_index(rows)
    then = {
        "target_hash": "abc",
        "aux_layers": LAYERS,
        "hidden_size": HIDDEN,
        "vocab_size": 16,
        "compute_dtype": "float32",
        "data_hash": index.counts.data_hash,
        "rows": len(rows),
        "vocab_hash": vocab_hash(VOCAB),
        "shard_mb": 1,
        "encoding": "bf16",
        "source": "captured",
    }
    key = blake2b(repr(sorted(then.items())).encode() + index.to_bytes(), digest_size=16).hexdigest()
    assert key.encode() in store.shapes[0].header
    shown = replace(store.meta, images_hash="seen")
    assert shard_shapes(shown, index, store.starts)[0].header != store.shapes[0].header


def test_shards_are_cut_by_size() -> None:
    mask = np.ones(40_000, dtype=np.uint8)
    rows = [TokenRow(str(i), np.zeros(40_000, dtype=np.int32), mask) for i in range(100)]
    counts = count_rows(rows)
    codec = row_codec("bf16", layers=3, hidden=8, aux_RC=torch.zeros(0, 24), last_RH=torch.zeros(0, 8))
    plan = plan_layout(counts, codec, shard_mb=7)
    assert plan.bytes_per_row[0] == -(-(40_000 * 5 + 39_999 * 48 + 39_999 * 20) // 16) * 16
    assert plan.starts == tuple(range(0, 101, 2))
    assert plan_layout(counts, codec, shard_mb=1).shards == 100  # no row is cut


def test_a_small_store_has_shards_that_a_kill_can_cost() -> None:
    mask = np.ones(400, dtype=np.uint8)
    rows = [TokenRow(str(i), np.zeros(400, dtype=np.int32), mask) for i in range(3200)]
    codec = row_codec("bf16", layers=3, hidden=8, aux_RC=torch.zeros(0, 24), last_RH=torch.zeros(0, 8))
    assert 32 <= plan_layout(count_rows(rows), codec, shard_mb=1000).shards <= 34
    assert plan_layout(count_rows(rows[:100]), codec, shard_mb=1000).shards == 3


@pytest.mark.parametrize("shards", [0, 1, 3])
def test_a_resumed_store_is_byte_for_byte_an_uninterrupted_one(tmp_path: Path, shards: int) -> None:
    rows = make_rows()
    fill(tmp_path / "whole", rows)
    fill(tmp_path / "resumed", rows, at_most=shards)
    (tmp_path / "resumed" / f".{shard_name(9)}.tmp-123").write_bytes(b"half a shard")
    with fails("store-unfinished", shards):
        Store(tmp_path / "resumed")
    fill(tmp_path / "resumed", rows)
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")


def test_a_shard_of_another_store_is_written_again(tmp_path: Path) -> None:
    rows = make_rows()
    fill(tmp_path / "whole", rows)
    fill(tmp_path / "other", [replace(row, token_ids=row.token_ids[::-1].copy()) for row in rows])
    fill(tmp_path / "resumed", rows, at_most=1)
    for name in (shard_name(1), shard_name(2)):
        (tmp_path / "resumed" / name).write_bytes((tmp_path / "other" / name).read_bytes())
    (tmp_path / "resumed" / shard_name(3)).write_bytes(b"no shard at all")
    fill(tmp_path / "resumed", rows)
    assert contents(tmp_path / "resumed") == contents(tmp_path / "whole")


def test_several_processes_write_one_store(tmp_path: Path) -> None:
    rows = make_rows()
    fill(tmp_path / "whole", rows)
    with writer(tmp_path / "shared", rows, ranks=3) as first:
        assert first.pending == [0, 3]
        assert writer(tmp_path / "shared", rows, rank=1, ranks=3).pending == [1]
        fill(tmp_path / "shared", rows, rank=2, ranks=3)
        assert writer(tmp_path / "shared", rows, rank=2, ranks=3).pending == []
    fill(tmp_path / "shared", rows)
    assert contents(tmp_path / "shared") == contents(tmp_path / "whole")


def test_an_earlier_runs_index_is_found_unless_it_is_damaged(tmp_path: Path) -> None:
    folder, report = tmp_path / "store", Silent()
    assert read_existing(folder, report) is None
    fill(folder, make_rows(), "int4", at_most=1)
    found = read_existing(folder, report)
    assert found is not None
    assert found.meta.encoding == "int4"
    assert found.index is not None
    assert found.index.to_bytes() == (folder / "index.safetensors").read_bytes()
    (folder / "index.safetensors").write_bytes(b"")
    found = read_existing(folder, report)
    assert found is not None
    assert found.index is None
    assert "damaged" in report.warnings[0]


@pytest.mark.parametrize(
    ("changes", "value"),
    [
        ({"target_hash": "xyz"}, "config"),
        ({"aux_layers": (0, 3, 4)}, "aux_layers"),
        ({"vocab_hash": "other"}, "vocabulary"),
        ({"data_hash": "other"}, "masks"),
        ({"compute_dtype": "bfloat16"}, "bfloat16"),
        ({"encoding": "int8"}, "int8"),
    ],
)
def test_another_capture_is_never_mixed_in(tmp_path: Path, changes: dict[str, object], value: str) -> None:
    rows, folder = make_rows(), tmp_path / "store"
    fill(folder, rows, at_most=1)
    before = contents(folder)
    with fails("made-differently", value, "--output-path"):
        writer(folder, rows, meta=changes)
    assert contents(folder) == before


def test_a_moved_target_goes_on(tmp_path: Path) -> None:
    rows, folder = make_rows(), tmp_path / "store"
    fill(folder, rows, at_most=1)
    with writer(folder, rows, meta={"target": "elsewhere"}) as found:
        assert found.pending == [1, 2, 3]


def test_going_on_with_another_batch_size_is_told(tmp_path: Path) -> None:
    rows, folder, report = make_rows(), tmp_path / "store", Silent()
    fill(folder, rows, at_most=1, computed={"batch_tokens": 64, "threads": 1}, report=report)
    fill(folder, rows, at_most=1, computed={"batch_tokens": 64, "threads": 1}, report=report)
    assert report.warnings == []
    fill(folder, rows, computed={"batch_tokens": 32, "threads": 1}, report=report)
    assert "going on with batch_tokens 32; rows from here on may differ in their last bits" in report.warnings[0]
    assert [c["batch_tokens"] for c in Store(folder).manifest["computed"]] == [64, 32]


def test_two_captures_do_not_write_at_once(tmp_path: Path) -> None:
    rows, folder = make_rows(), tmp_path / "store"
    with writer(folder, rows):
        for begin in (lambda: writer(folder, rows), lambda: discard_store(folder)):  # the second one: --overwrite
            with fails("locked"):
                begin()
    fill(folder, rows)
    assert len(Store(folder)) == len(rows)


def test_folders_that_are_no_store(tmp_path: Path) -> None:
    with fails("no-store"):
        Store(tmp_path)
    (tmp_path / "letter.txt").write_text("dear")
    with fails("foreign-files", "letter.txt"):
        fill(tmp_path, make_rows())
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 2, "meta": {}}))
    with fails("no-store"):
        Store(tmp_path)
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 99, "meta": {}}))
    with fails("store-format", "99"):
        Store(tmp_path)


def test_discard_removes_the_store_and_nothing_else(tmp_path: Path) -> None:
    fill(tmp_path, make_rows())
    (tmp_path / "letter.txt").write_text("dear")
    discard_store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_states_that_are_not_finite_are_refused() -> None:
    rows = make_rows()
    states = [states_of(row) for row in rows]
    states[4].aux_UC[0, 0] = float("inf")
    with fails("states-not-finite"):
        make_index(rows).codec.pack(states)


def test_no_shard_is_there_until_it_is_whole(tmp_path: Path) -> None:
    rows, folder = make_rows(), tmp_path / "store"
    codec = make_index(rows).codec
    with writer(folder, rows) as store:
        with pytest.raises(ValueError, match="lacks rows"), store.writing(0) as put:
            put(1, codec.pack([states_of(rows[1])])[0])
        with fails("damaged-store"):
            store.finish()
    assert sorted(path.name for path in folder.iterdir()) == ["index.safetensors", "manifest.json"]


def test_reading_rows_keeps_memory_flat(tmp_path: Path) -> None:
    """Pages of a memory map count as memory of the process until they are dropped."""
    mask = np.ones(4000, dtype=np.uint8)
    rows = [TokenRow(str(i), np.full(4000, i, dtype=np.int32), mask) for i in range(40)]
    fill(tmp_path / "store", rows)
    store = Store(tmp_path / "store")

    def mapped() -> int:
        return int(Path("/proc/self/statm").read_text().split()[2]) * 4096  # shared (file-backed) resident pages

    if not Path("/proc/self/statm").exists():
        pytest.skip("no /proc")
    store[0]
    before = mapped()
    for n in range(len(store)):
        store[n]
    assert mapped() - before < store.bytes / 3
