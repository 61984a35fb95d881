"""Stop signals while a run of two processes starts, evaluates and saves: the same command always goes on."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

from tests.commands.train.ranks import CALM, Session, events, ranks_of

WORDS = (*CALM, "--gpus", "2", "--num-epochs", "100000", "--total-steps")
ENDLESS = "100000"
"""Steps: a run that is stopped has not come to its end, however late the signal is."""
OFTEN = ("--save-interval", "4", "--eval-interval", "2")


def stop(session: Session, number: signal.Signals) -> str:
    """Send a signal to what was typed, and nothing else; returns what it said."""
    session.process.send_signal(number)
    code, said = session.wait(), session.log.read_text()
    assert code == 128 + number, said
    assert "Traceback" not in said
    assert f"stopped by {number.name}" in said
    assert "run the same command again" in said
    return said


@pytest.mark.slow
def test_whenever_it_is_stopped_the_same_command_goes_on(place: Path) -> None:
    starting = Session(place, *WORDS, ENDLESS, *OFTEN)
    starting.until(lambda: len(ranks_of(starting.process.pid)) == 2)
    assert "nothing was" in stop(starting, signal.SIGINT)

    evaluating = Session(place, *WORDS, ENDLESS, *OFTEN)
    log = evaluating.run / "log.txt"
    # Behind the one that comes before any step.
    evaluating.until(
        lambda: (
            log.exists()
            and re.search(r"step [1-9]\d*: acceptance.*\d eval: begins", log.read_text(), re.DOTALL) is not None
        )
    )
    assert "saved step" in stop(evaluating, signal.SIGUSR1)

    saving = Session(place, *WORDS, ENDLESS, *OFTEN)
    saving.until(lambda: len(ranks_of(saving.process.pid)) == 2 and any((saving.run / "checkpoints").glob(".epoch_*")))
    assert "saved step" in stop(saving, signal.SIGTERM)

    reached = logged_steps(place)[-1]
    assert Session(place, *WORDS, str(reached + 4), *OFTEN).wait() == 0
    assert logged_steps(place) == list(range(1, reached + 5))


def logged_steps(place: Path) -> list[int]:
    return [event["step"] for event in events(place / "killed") if event["event"] == "step"]


@pytest.mark.slow
def test_no_process_outlives_the_one_that_started_it(place: Path) -> None:
    session = Session(place, *WORDS, ENDLESS, *OFTEN)
    session.until(lambda: len(ranks_of(session.process.pid)) == 2)
    session.process.kill()
    assert session.wait() == -signal.SIGKILL  # and nothing is left
