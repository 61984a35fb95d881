"""Times of streamed answers."""

from __future__ import annotations

import pytest

from eagle3cli.serving.bench.summary import gaps, inter_token
from eagle3cli.serving.client.protocol import Answer


@pytest.mark.parametrize(
    ("frames", "seconds"),
    [
        (((0.5, 1), (0.75, 3), (1.5, 5)), 0.25),  # one second for four tokens
        (((0.5, 4),), None),
        ((), None),
    ],
)
def test_the_time_from_token_to_token_leaves_the_first_out(
    frames: tuple[tuple[float, int], ...], seconds: float | None
) -> None:
    answer = Answer("text", "stop", tokens=5, prompt_tokens=1, frames=frames)
    assert inter_token(answer) == seconds
    assert gaps(answer) == [after[0] - before[0] for before, after in zip(frames, frames[1:], strict=False)]
