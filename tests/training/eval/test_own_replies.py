"""What a reply says anew is told from what it repeats, of itself or of its prompt."""

from __future__ import annotations

import pytest

from eagle3cli.training.eval.own_replies import new_tokens


@pytest.mark.parametrize(
    ("prompt", "reply", "count"),
    [
        ([1, 2], [10, 11, 12, 13], 3),
        ([1, 2], [10, 11, 12, 13, 14] * 20, 7),
        ([10, 11, 12, 13, 14, 15, 16], [10, 11, 12, 13, 14, 15, 16], 2),
        ([1, 2], [10], 0),
    ],
    ids=["plain", "going round", "the prompt again", "one token"],
)
def test_repeated_tokens_are_not_new(prompt: list[int], reply: list[int], count: int) -> None:
    """The first token is not judged; behind a place where the text turns three tokens are new."""
    mask = [0] * len(prompt) + [1] * len(reply)
    assert new_tokens(prompt + reply, mask) == count
