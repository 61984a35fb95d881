"""Which draft is promoted: as far towards the trained one as the old data allow."""

from __future__ import annotations

import pytest

from eagle3cli.pipeline.refresh.decision import OLD, TRAFFIC, Acceptance, choice, furthest, why_not
from eagle3cli.settings.refresh import RefreshSettings

OPTIONS = RefreshSettings(least_gain=0.01, tolerance=0.01)


@pytest.mark.parametrize(
    ("gain", "loss", "share", "measured"),
    [
        (0.2, 0.0, 1.0, [1.0]),
        (0.2, 0.03, 0.5, [1.0, 0.75, 0.5]),
        (0.2, 0.5, 1.0, [1.0, 0.75, 0.5, 0.25]),
        (0.015, 0.03, 1.0, [1.0, 0.75, 0.5]),
        (-0.1, 0.2, 1.0, [1.0]),
    ],
    ids=["all of the way", "half of it", "no part will do", "what is left gains too little", "nothing is gained"],
)
def test_goes_as_far_as_the_old_data_allow(gain: float, loss: float, share: float, measured: list[float]) -> None:
    """Gains grow with the way, losses with its square."""
    asked = []

    def measure(part: float) -> Acceptance:
        asked.append(part)
        return {
            TRAFFIC: {"before": 1.5, "after": 1.5 * (1 + gain * part)},
            OLD: {"before": 1.6, "after": 1.6 * (1 - loss * part**2)},
        }

    chosen, acceptance = furthest(measure, OPTIONS)
    assert (chosen, asked) == (share, measured)
    assert acceptance == measure(chosen)
    assert bool(why_not(acceptance, OPTIONS)) is (share == 1.0 and (gain, loss) != (0.2, 0.0))


def test_a_choice_between_several_drafts_is_said() -> None:
    assert choice([1.0], promoted=True) == choice([1.0], promoted=False) == choice([], promoted=False) == ""
    assert "50% of the way" in choice([1.0, 0.75, 0.5], promoted=True)
    assert "out of 3 drafts, so its numbers are a little too good" in choice([1.0, 0.75, 0.5], promoted=True)
    assert "75%, 50% of the way" in choice([1.0, 0.75, 0.5], promoted=False)


def test_what_an_earlier_version_had_is_named_where_the_served_one_had_less() -> None:
    traffic = {"before": 1.5, "after": 1.8}
    assert "below the 1.7 of an earlier version" in why_not(
        {TRAFFIC: traffic, OLD: {"before": 1.65, "best": 1.7, "after": 1.66}}, OPTIONS
    )
    assert "earlier" not in why_not({TRAFFIC: traffic, OLD: {"before": 1.7, "best": 1.7, "after": 1.6}}, OPTIONS)
