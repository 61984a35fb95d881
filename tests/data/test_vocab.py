from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.data.vocab import from_ids, load_vocab, save_vocab
from eagle3cli.errors import DataError


@given(ids=st.sets(st.integers(0, 19), min_size=1))
def test_both_maps_name_the_same_tokens(ids: set[int]) -> None:
    mapping = from_ids(list(ids), 20)
    assert mapping.draft_ids.tolist() == mapping.t2d.nonzero().flatten().tolist() == sorted(ids)
    assert [draft + int(offset) for draft, offset in enumerate(mapping.d2t)] == sorted(ids)
    assert (mapping.size, mapping.target_size) == (len(ids), 20)


def test_saved_and_read_back(tmp_path: Path) -> None:
    mapping = from_ids([0, 3, 4, 8], 9)
    save_vocab(tmp_path / "v.safetensors", mapping)
    again = load_vocab(tmp_path / "v.safetensors")
    assert torch.equal(again.d2t, mapping.d2t)
    assert torch.equal(again.t2d, mapping.t2d)
    assert (again.d2t.dtype, again.t2d.dtype) == (torch.int64, torch.bool)
    (tmp_path / "v.safetensors").write_bytes(b"damaged")
    with pytest.raises(DataError, match="not a vocabulary mapping"):
        load_vocab(tmp_path / "v.safetensors")
