"""The simulation counts what step-by-step chain decoding counts."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from eagle3cli.training.eval.simulate import AcceptanceCounts, agreement_table, reply_spans, simulate

K = 4
tables = st.lists(st.lists(st.booleans(), min_size=K, max_size=K), min_size=3, max_size=30)


@given(tables)
def test_is_chain_decoding(rows: list[list[bool]]) -> None:
    """Against the loop that a server runs: draft k, accept the leading matches, add one, stop at the end token."""
    size = len(rows)
    agrees = [[rows[p][i] for p in range(size)] for i in range(K)]
    for k in range(1, K + 1):
        written, steps, accepted_at = 1, 0, [0] * k  # the prefill wrote position 1
        while written < size - 1:
            steps += 1
            row, accepted = written - 1, 0
            for depth in range(k):
                if written + 1 + depth > size - 1 or not agrees[depth][row]:
                    break
                accepted_at[depth] += 1
                accepted += 1
            written = min(size - 1, written + accepted + 1)
        counts = simulate(agrees, (1, size), k)
        assert (counts.tokens, counts.steps, counts.accepted_at) == (size - 2, steps, accepted_at)


def test_a_perfect_draft_gains_k_plus_one_tokens_a_step() -> None:
    counts = simulate([[True] * 50] * 3, (1, 42), 3)
    assert counts.acceptance_length == 4.0
    assert counts.per_position == [1.0, 1.0, 1.0]


def test_a_useless_draft_gains_one() -> None:
    assert simulate([[False] * 50] * 3, (1, 42), 3).acceptance_length == 1.0


def test_one_token_replies_have_no_step() -> None:
    assert simulate([[True] * 5], (1, 2), 1) == AcceptanceCounts(0, 0, [0])


def test_spans_end_at_sequence_ends() -> None:
    mask = [False, True, True, True, True, False, True]
    assert reply_spans(mask, (0, 3, 7)) == [(1, 3), (3, 5), (6, 7)]


def test_a_position_without_a_proposal_never_agrees() -> None:
    token_ids_N = torch.tensor([9, 8, 7, 6, 5, 4])
    table = agreement_table(
        [torch.tensor([7, 0]), torch.tensor([5])], [torch.tensor([0, 2]), torch.tensor([1])], token_ids_N
    )
    assert table == [[True, False, False, False, False, False], [False, True, False, False, False, False]]
