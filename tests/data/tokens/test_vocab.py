from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.data.tokens.vocab import from_ids, load_vocab
from eagle3cli.data.tokens.vocab_file import holds, tensors_of, write_vocab
from tests.failing import fails


@given(ids=st.sets(st.integers(0, 19), min_size=1))
def test_both_maps_name_the_same_tokens(ids: set[int]) -> None:
    mapping = from_ids(list(ids), 20)
    assert mapping.draft_ids.tolist() == mapping.t2d.nonzero().flatten().tolist() == sorted(ids)
    assert [draft + int(offset) for draft, offset in enumerate(mapping.d2t)] == sorted(ids)
    assert (mapping.size, mapping.target_size) == (len(ids), 20)


@given(ids=st.sets(st.integers(0, 19), min_size=1))
def test_the_file_holds_the_same(ids: set[int]) -> None:
    mapping, tensors = from_ids(list(ids), 20), tensors_of(np.array(sorted(ids)), 20)
    assert tensors["d2t"].tolist() == mapping.d2t.tolist()
    assert tensors["t2d"].tolist() == mapping.t2d.tolist()


def test_written_and_read_back(tmp_path: Path) -> None:
    path, ids = tmp_path / "v.safetensors", np.array([0, 3, 4, 8])
    assert not holds(path, ids, 9)
    write_vocab(path, ids, 9)
    again = load_vocab(path)
    assert again.draft_ids.tolist() == [0, 3, 4, 8]
    assert (again.target_size, again.d2t.dtype, again.t2d.dtype) == (9, torch.int64, torch.bool)
    assert holds(path, ids, 9)
    assert not holds(path, ids, 10)
    assert not holds(path, ids[:3], 9)
    path.write_bytes(b"damaged")
    assert not holds(path, ids, 9)
    with fails("vocabulary-mapping"):
        load_vocab(path)
