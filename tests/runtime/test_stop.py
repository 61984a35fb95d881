"""Stop signals: the first asks, the second ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading

import pytest

from eagle3cli.errors import Stopped
from eagle3cli.runtime.stop import catch_stop
from tests.conftest import ROOT

WORK = """
import sys, time
from eagle3cli.cli.main import main
from eagle3cli.commands import doctor
from eagle3cli.runtime.stop import catch_stop
import dataclasses
def run(settings, out):
    with catch_stop(out) as stop:
        print("ready", flush=True)
        for step in range(600):
            time.sleep(0.05)
            if STOPS: stop.check(f"saved step {step >= 0}")
doctor.COMMAND = dataclasses.replace(doctor.COMMAND, run=run)
sys.exit(main(["doctor"]))
"""


def begin(stops: bool) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WORK.replace("STOPS", str(stops))]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_the_first_signal_saves_and_says_how_to_go_on(number: signal.Signals) -> None:
    process = begin(stops=True)
    process.send_signal(number)
    _, told = process.communicate(timeout=150)
    assert process.returncode == 128 + number
    assert f"stopped by {number.name}; saved step True" in told
    assert "run the same command again" in told


def test_the_second_signal_ends_at_once() -> None:
    process = begin(stops=False)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    while "once more stops at once" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=150)
    assert process.returncode == -signal.SIGINT  # a shell shows 130


def test_handlers_are_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with catch_stop() as stop:
        assert signal.getsignal(signal.SIGTERM) is not before
        assert stop.requested is None
        stop.check("nothing")
    assert signal.getsignal(signal.SIGTERM) is before


def test_an_inner_block_shares_the_outer_one() -> None:
    with catch_stop() as outer:
        with catch_stop() as inner:
            os.kill(os.getpid(), signal.SIGTERM)
            with pytest.raises(Stopped) as caught:
                inner.check("saved")
        assert outer.requested == signal.SIGTERM
    assert caught.value.exit_code == 143


def test_other_threads_catch_nothing() -> None:
    seen: list[int | None] = []

    def work() -> None:
        with catch_stop() as stop:
            seen.append(stop.requested)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [None]
