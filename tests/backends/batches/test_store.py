"""Batches from disk: several stores as one, read ahead or not, always the same."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.backends.batches import prefetch
from eagle3cli.backends.batches.batch import TargetBatch
from eagle3cli.backends.batches.prefetch import Prefetched, read_ahead
from eagle3cli.backends.batches.store import StoreSource
from eagle3cli.data.hidden_states.quantize import QUANTIZATIONS, Quantization
from eagle3cli.data.hidden_states.rows import PackedRow
from eagle3cli.data.hidden_states.shard import shard_name
from eagle3cli.data.hidden_states.store import Store, Stores, open_stores
from eagle3cli.runtime.devices import SideStream
from eagle3cli.training.batches import Sampler
from tests.data.hidden_states.test_store import fill, make_rows, states_of
from tests.failing import fails
from tests.gpu_tensor import PretendGpu


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of the same 12 rows in every encoding, and of 9 others in bf16."""
    place = tmp_path_factory.mktemp("stores")
    for encoding in QUANTIZATIONS:
        fill(place / encoding, make_rows(), encoding)
    fill(place / "more", make_rows(9, seed=1))
    return place


def same(left: TargetBatch, right: TargetBatch) -> bool:
    return all(
        torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(vars(left).values(), vars(right).values(), strict=True)
    )


def test_a_batch_is_its_rows_side_by_side(folder: Path) -> None:
    rows = make_rows()
    batch = StoreSource(Store(folder / "bf16")).batch([5, 0, 3])
    assert batch.rows == (5, 0, 3)
    assert batch.cu_seqlens[-1] == len(batch.token_ids_N) == sum(len(rows[n]) for n in (5, 0, 3))
    for begin, end, number in zip(batch.cu_seqlens, batch.cu_seqlens[1:], batch.rows, strict=False):
        wanted = states_of(rows[number])
        assert torch.equal(batch.token_ids_N[begin:end], wanted.token_ids_S)
        assert torch.equal(batch.loss_mask_N[begin:end], wanted.loss_mask_S)
        used = len(wanted.aux_UC)
        assert torch.equal(batch.aux_NC[begin : begin + used], wanted.aux_UC.float())
        assert not batch.aux_NC[begin + used : end].any()
        where = (batch.top_N[begin:end] >= 0).nonzero()[:, 0]
        assert torch.equal(batch.top_N[begin:end][where], wanted.top_R)
        assert torch.equal(batch.last_NH[begin:end][where], wanted.last_RH.float())


def test_rows_without_loss_alone_make_a_batch(folder: Path) -> None:
    batch = StoreSource(Store(folder / "int4")).batch([3, 8])
    assert not batch.loss_mask_N.any()
    assert not batch.aux_NC.any()
    assert bool((batch.top_N == -1).all())


def test_several_stores_follow_one_another_whatever_their_encoding(folder: Path) -> None:
    stores = open_stores([folder / "int8", folder / "more", folder / "int4"])
    assert len(stores) == 33
    assert stores.lengths == [len(row) for row in [*make_rows(), *make_rows(9, seed=1), *make_rows()]]
    assert stores.at(0) == (0, 0)
    assert stores.at(12) == (1, 0)
    assert stores.at(32) == (2, 11)
    with pytest.raises(IndexError):
        stores.at(33)
    joint = StoreSource(stores).batch([0, 12, 21, 5])
    for position, (name, row) in enumerate([("int8", 0), ("more", 0), ("int4", 0), ("int8", 5)]):
        alone = StoreSource(Store(folder / name)).batch([row])
        part = slice(joint.cu_seqlens[position], joint.cu_seqlens[position + 1])
        for field in ("token_ids_N", "loss_mask_N", "top_N"):
            assert torch.equal(getattr(joint, field)[part], getattr(alone, field)), (name, field)
        for field in ("aux_NC", "last_NH"):
            # int8 and int4 are rotated back by a product: its last bits may depend on how many states are decoded.
            torch.testing.assert_close(getattr(joint, field)[part], getattr(alone, field), rtol=1e-5, atol=1e-6)


def test_stores_of_different_targets_are_not_mixed(folder: Path) -> None:
    first, second = Store(folder / "bf16"), Store(folder / "more")
    second.meta = replace(second.meta, target_hash="other", aux_layers=(0, 3, 4))
    with fails("store-unfit", "bf16"):
        Stores([first, second])


@pytest.mark.parametrize("encoding", QUANTIZATIONS)
def test_reading_ahead_changes_nothing(folder: Path, encoding: Quantization) -> None:
    source, order = StoreSource(Store(folder / encoding)), Sampler(12, 5, seed=3)
    batches = [order.batch(step) for step in range(9)]
    ahead = Prefetched(source, iter(batches), window_bytes=5000)
    assert list(ahead.lengths) == list(source.lengths)
    for rows in batches:
        assert same(ahead.batch(rows), source.batch(rows))
    assert same(ahead.batch([1, 2]), source.batch([1, 2])), "after the last known batch"


@pytest.mark.slow
@given(st.lists(st.sampled_from(["next", "skip", "other", "again"]), max_size=30), st.integers(1, 40_000))
def test_any_request_is_answered_with_its_rows(folder: Path, requests: list[str], window: int) -> None:
    source, order = StoreSource(Store(folder / "int8")), Sampler(12, 5, seed=0)
    ahead, step = Prefetched(source, map(order.batch, range(10**6)), window_bytes=window), 0
    for request in requests:
        step += {"next": 1, "skip": 2}.get(request, 0)
        rows = [4, 9] if request == "other" else order.batch(step)
        assert ahead.batch(rows).rows == tuple(rows)


def test_the_disk_is_read_in_its_own_order_and_within_the_window(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "THREADS", 1)
    source, order, read = StoreSource(Store(folder / "bf16")), Sampler(12, 1, seed=1), list[int]()
    inner, lock = source.stores.packed, threading.Lock()

    def packed(row: int) -> PackedRow:
        with lock:
            read.append(row)
        return inner(row)

    monkeypatch.setattr(source.stores, "packed", packed)
    window = sum(source.stores.size(row) for row in order.shuffled(0)[:6])
    ahead = Prefetched(source, (order.batch(step) for step in range(12)), window_bytes=window)
    ahead.batch(order.batch(0))
    assert read == sorted(order.shuffled(0)[:6])
    for step in range(1, 12):
        ahead.batch(order.batch(step))
    assert sorted(read) == list(range(12)), "each row once"


def test_a_rank_that_never_has_rows_reads_what_it_is_asked_for(folder: Path) -> None:
    source = StoreSource(Store(folder / "bf16"))
    ahead = Prefetched(source, itertools.repeat([]))
    assert same(ahead.batch([2, 1]), source.batch([2, 1]))


def test_a_damaged_row_is_an_error_when_its_turn_comes(folder: Path, tmp_path: Path) -> None:
    fill(tmp_path / "store", make_rows())
    path = tmp_path / "store" / shard_name(1)
    spoilt = bytearray(path.read_bytes())
    spoilt[-100] ^= 1
    path.write_bytes(spoilt)
    ahead = Prefetched(StoreSource(Store(tmp_path / "store")), iter([[0, 1], [4, 5], [2]]))
    ahead.batch([0, 1])
    with fails("damaged-store", "checksum"):
        ahead.batch([4, 5])
    ahead.batch([2])


def test_a_gpu_brings_the_next_batch_while_it_works_on_this_one(
    folder: Path, gpu: PretendGpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = torch.device("cuda")
    source = StoreSource(Store(folder / "int8"), device=device)
    streams: list[int] = []
    decoded = source.decoded
    monkeypatch.setattr(source, "decoded", lambda host: (streams.append(gpu.stream), decoded(host))[1])
    order = [[0, 1], [4, 2], [3], [5]]
    ahead = Prefetched(source, iter(order))
    for rows in order:
        wait([on_the_way.host for on_the_way in ahead._queue])
        gpu.reset()
        batch = ahead.batch(rows)
        (batch.aux_NC + batch.last_NH.sum()).sum()  # work of the device's own stream
        assert not gpu.syncs
        expected = decoded(source.joined(rows, [source.stores.packed(row) for row in rows]))
        for name in ("token_ids_N", "aux_NC", "last_NH", "top_N"):
            assert torch.equal(getattr(batch, name).cpu(), getattr(expected, name).cpu())
    assert streams[0] == 0
    assert all(streams[2:]), "beside the device's own work, once the disk has been read: the second was, or not yet"
    monkeypatch.setattr(SideStream, "join", lambda *_: None)
    ahead = Prefetched(source, iter(order))
    ahead.batch(order[0])
    wait([on_the_way.host for on_the_way in ahead._queue])
    ahead.batch(order[1])
    with pytest.raises(RuntimeError, match="another stream"):
        ahead.batch(order[2]).aux_NC.sum()


def test_only_stores_are_read_ahead(folder: Path) -> None:
    source = StoreSource(Store(folder / "bf16"))
    assert isinstance(read_ahead(source, iter([])), Prefetched)
    live = Prefetched(source, iter([]))  # any source that is not a store's
    assert read_ahead(live, iter([])) is live
