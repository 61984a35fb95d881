"""Some rows of a store as one of their own: the same bytes, in the order asked for, resumable."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eagle3cli.data.hidden_states.check import check_store
from eagle3cli.data.hidden_states.quantize import Quantization
from eagle3cli.data.hidden_states.select import select_rows
from eagle3cli.data.hidden_states.shard import shard_name
from eagle3cli.data.hidden_states.store import Store
from eagle3cli.runtime.report import Silent
from tests.data.hidden_states.test_store import fill, make_rows
from tests.failing import fails


@pytest.mark.parametrize("encoding", ["bf16", "int4"])
def test_chosen_rows_are_copied(tmp_path: Path, encoding: Quantization) -> None:
    fill(tmp_path / "all", make_rows(12), encoding)
    store = Store(tmp_path / "all")
    numbers = [7, 0, 3, 11]
    chosen = select_rows(store, numbers, tmp_path / "some", Silent())
    assert check_store(chosen, Silent()) == []
    assert chosen.lengths == [store.lengths[number] for number in numbers]
    for at, number in enumerate(numbers):
        was, now = store[number], chosen[at]
        assert all(torch.equal(getattr(was, name), getattr(now, name)) for name in vars(was))

    (tmp_path / "some" / shard_name(0)).unlink()  # as a kill leaves it
    again = select_rows(store, numbers, tmp_path / "some", Silent())
    assert torch.equal(again[0].last_RH, store[7].last_RH)
    with fails("made-differently"):
        select_rows(store, numbers[::-1], tmp_path / "some", Silent())
