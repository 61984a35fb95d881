from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.data.tokens.counts import SIZE_STEP, Ranking, count_tokens, fit_to_vocab, rank_tokens
from eagle3cli.data.tokens.rows import TokenRow
from tests.failing import fails

COUNTS = st.lists(st.integers(0, 5), min_size=8, max_size=8).map(lambda counts: np.array(counts, dtype=np.int64))


def row(ids: list[int], mask: list[int]) -> TokenRow:
    return TokenRow("r", np.array(ids, dtype=np.int32), np.array(mask, dtype=np.uint8))


def ranked(rows: list[TokenRow], **weights: int) -> Ranking:
    reply, prompt = (fit_to_vocab(counts, 10) for counts in count_tokens(rows))
    return rank_tokens(reply, prompt, **weights)


@given(reply=COUNTS, prompt=COUNTS, size=st.integers(2, 8), always=st.sets(st.integers(0, 7), max_size=2))
def test_the_most_used_tokens_ties_by_id(reply: np.ndarray, prompt: np.ndarray, size: int, always: set[int]) -> None:
    ids = rank_tokens(reply, prompt, always=always).first(size).tolist()
    assert ids == sorted(set(ids))
    assert len(ids) == size
    assert always <= set(ids)
    score = 3 * reply + prompt
    left_out = set(range(8)) - set(ids)
    for inside in set(ids) - always:
        for outside in left_out:
            assert (score[inside], -inside) > (score[outside], -outside)


def test_replies_weigh_three_times_a_prompt() -> None:
    rows = [row([5, 5, 6], [0, 0, 1]), row([7], [0])]
    assert ranked(rows).first(1).tolist() == [6]
    assert ranked(rows, reply_weight=0).first(1).tolist() == [5]
    assert ranked(rows, prompt_weight=0).first(2).tolist() == [0, 6]
    assert len(ranked(rows).first(99)) == 10


@given(reply=COUNTS, prompt=COUNTS)
def test_coverage_by_size_is_what_counting_says(reply: np.ndarray, prompt: np.ndarray) -> None:
    ranking = rank_tokens(reply, prompt)
    covered = ranking.coverage(reply)
    for size in range(9):
        total = reply.sum()
        assert covered[size] == (reply[ranking.first(size)].sum() / total if total else 1.0)


def test_the_suggested_size_is_the_smallest_step_that_covers_enough() -> None:
    reply = np.zeros(5 * SIZE_STEP, dtype=np.int64)
    reply[: 2 * SIZE_STEP] = 1
    ranking = rank_tokens(reply, reply)
    suggested = ranking.suggested(reply)
    assert suggested == 2 * SIZE_STEP
    assert ranking.coverage(reply)[suggested] >= 0.99 > ranking.coverage(reply)[suggested - SIZE_STEP]
    assert rank_tokens(reply, reply, always=range(3 * SIZE_STEP)).suggested(reply) == 3 * SIZE_STEP
    tiny = np.ones(100, dtype=np.int64)
    assert rank_tokens(tiny, tiny).suggested(tiny) == 100


def test_a_token_outside_the_vocabulary_is_an_error() -> None:
    with fails("token-outside-vocabulary", "9"):
        fit_to_vocab(count_tokens([row([9], [1])])[0], 5)


def test_special_tokens_must_fit() -> None:
    none = np.zeros(9, dtype=np.int64)
    with fails("invalid-value", "3"):
        rank_tokens(none, none, always=(1, 2, 3)).first(2)
