from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.data.rows import TokenRow
from eagle3cli.data.vocab import (
    VocabMapping,
    choose,
    count_tokens,
    coverage,
    fit,
    full_vocab,
    load_vocab,
    save_vocab,
)
from eagle3cli.errors import DataError, UsageError

COUNTS = st.lists(st.integers(0, 5), min_size=8, max_size=8).map(lambda counts: np.array(counts, dtype=np.int64))


def row(ids: list[int], mask: list[int]) -> TokenRow:
    return TokenRow("r", np.array(ids, dtype=np.int32), np.array(mask, dtype=np.uint8))


def chosen(rows: list[TokenRow], size: int, **weights: int) -> VocabMapping:
    reply, prompt = (fit(counts, 10) for counts in count_tokens(rows))
    return choose(reply, prompt, size, **weights)


@given(reply=COUNTS, prompt=COUNTS, size=st.integers(2, 8), always=st.sets(st.integers(0, 7), max_size=2))
def test_the_most_used_tokens_with_both_maps(
    reply: np.ndarray, prompt: np.ndarray, size: int, always: set[int]
) -> None:
    mapping = choose(reply, prompt, size, always=always)
    ids = mapping.draft_ids.tolist()
    assert ids == sorted(set(ids))
    assert len(ids) == mapping.size == size
    assert always <= set(ids)
    assert mapping.t2d.nonzero().flatten().tolist() == ids
    assert [draft + int(offset) for draft, offset in enumerate(mapping.d2t)] == ids
    score = 3 * reply + prompt
    left_out = set(range(8)) - set(ids)
    for inside in set(ids) - always:
        for outside in left_out:
            assert (score[inside], -inside) > (score[outside], -outside)


def test_replies_weigh_three_times_a_prompt() -> None:
    rows = [row([5, 5, 6], [0, 0, 1]), row([7], [0])]
    assert chosen(rows, 1).draft_ids.tolist() == [6]
    assert chosen(rows, 1, reply_weight=0).draft_ids.tolist() == [5]
    assert chosen(rows, 10).size == 10


def test_coverage() -> None:
    reply, prompt = count_tokens([row([1, 1, 1, 2, 3], [1, 1, 1, 1, 0])])
    mapping = choose(fit(reply, 5), fit(prompt, 5), 1)
    assert coverage(mapping, fit(reply, 5)) == 0.75
    assert coverage(full_vocab(5), fit(reply, 5)) == 1.0


def test_a_token_outside_the_vocabulary_is_an_error() -> None:
    with pytest.raises(DataError, match="token id 9 is outside"):
        fit(count_tokens([row([9], [1])])[0], 5)


def test_special_tokens_must_fit() -> None:
    with pytest.raises(UsageError, match="cannot hold the 3 special tokens"):
        choose(np.zeros(9, dtype=np.int64), np.zeros(9, dtype=np.int64), 2, always=(1, 2, 3))


def test_saved_and_read_back(tmp_path: Path) -> None:
    mapping = choose(np.arange(9), np.zeros(9, dtype=np.int64), 4, always=(0,))
    save_vocab(tmp_path / "v.safetensors", mapping)
    again = load_vocab(tmp_path / "v.safetensors")
    assert torch.equal(again.d2t, mapping.d2t)
    assert torch.equal(again.t2d, mapping.t2d)
    assert (again.d2t.dtype, again.t2d.dtype) == (torch.int64, torch.bool)
    (tmp_path / "v.safetensors").write_bytes(b"damaged")
    with pytest.raises(DataError, match="not a vocabulary mapping"):
        load_vocab(tmp_path / "v.safetensors")
