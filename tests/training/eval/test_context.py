"""Acceptance by context length: which step counts where, and when people are told that it falls."""

from __future__ import annotations

import pytest

from eagle3cli.data.tokens.on_policy import POSITIONS
from eagle3cli.training.eval.context import CONTEXTS, FEWEST_STEPS, context_warning
from eagle3cli.training.eval.simulate import AcceptanceCounts, simulate, simulate_by_range


def test_a_step_counts_where_its_context_ends() -> None:
    """A reply at tokens 500 to 600 of a sequence that begins at packed position 7, one token a step."""
    agrees = [[False] * 700] * 3
    span = (7 + 500, 7 + 600)
    by_context = simulate_by_range(agrees, span, 3, CONTEXTS, 7)
    # A step begins with 501 to 599 tokens known; those below 512 are in the first range.
    assert {name: counts.steps for name, counts in by_context.items() if counts.steps} == {"0-511": 11, "512-1023": 88}
    by_position = simulate_by_range(agrees, span, 3, POSITIONS, span[0])
    assert [by_position[name].steps for name in POSITIONS] == [15, 48, 36, 0]


def test_ranges_add_up_to_the_whole() -> None:
    agrees = [[(p * 7 + i) % 3 > 0 for p in range(3000)] for i in range(4)]
    whole = AcceptanceCounts(accepted_at=[0] * 4)
    for part in simulate_by_range(agrees, (100, 2900), 4, CONTEXTS, 0).values():
        whole.add(part)
    assert whole == simulate(agrees, (100, 2900), 4)


ENOUGH = dict.fromkeys(CONTEXTS, FEWEST_STEPS)


def test_a_fall_by_more_than_a_tenth_is_told() -> None:
    warning = context_warning({"0-511": 2.5, "512-1023": 2.26, "1024-2047": 2.0, "2048-4095": 2.2}, ENOUGH)
    assert warning is not None
    assert "2.50 at 0-511 tokens, 2.00 at 1024-2047 (20% less)" in warning
    assert "--draft-window" in warning


@pytest.mark.parametrize(
    ("lengths", "steps"),
    [
        ({"0-511": 2.5, "512-1023": 2.26}, ENOUGH),  # by less
        ({"512-1023": 1.1}, ENOUGH),  # nothing to compare with
        ({"0-511": 2.5, "512-1023": 1.0}, {**ENOUGH, "512-1023": FEWEST_STEPS - 1}),  # too few to tell
        ({}, {}),
    ],
)
def test_what_is_no_fall(lengths: dict[str, float], steps: dict[str, int]) -> None:
    assert context_warning(lengths, steps) is None
