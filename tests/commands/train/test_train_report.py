"""What training leaves for people: report.html and run.json, whatever ends it."""

from __future__ import annotations

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from eagle3cli.runs import session
from eagle3cli.runs.folder import read_run
from eagle3cli.runs.state import state_of
from tests.commands.train.runs import start, wait_for
from tests.conftest import RunCli


def about(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "run.json").read_text())
    return found


@pytest.mark.slow
def test_a_run_explains_itself(place: Path, run_cli: RunCli) -> None:
    assert run_cli("train", "--output-dir", "run").code == 0
    run = place / "run"
    page = (run / "report.html").read_text()
    assert "Finished: step 12 of 12" in page
    assert page.count("<svg") == 13
    assert "Name colours, number 0." in page
    assert "and 100.0% of those of evaluation rows" in page
    told = about(run)
    assert (told["processes"], told["total_steps"], told["data"]["train"]["rows"]) == (1, 12, 14)
    assert [s["state"] for s in told["sessions"]] == ["finished"]
    assert not list(run.glob(".*"))
    # the next session goes on in the same files, and a run of hidden states finds the counts of their cache
    assert run_cli("train", "--output-dir", "run").code == 0
    assert [s["state"] for s in about(run)["sessions"]] == ["finished", "finished"]
    assert run_cli("hidden-states", "--output-path", "states").code == 0
    offline = ("--mode", "offline", "--train-hidden-states-path", "states/train", "--total-steps", "4")
    assert run_cli("train", *offline, "--output-dir", "off").code == 0
    page = (place / "off" / "report.html").read_text()
    assert "From hidden states" in page
    assert "reading hidden states" in page
    assert "<td>eval</td>" in page
    assert about(place / "off")["data"]["train"]["loss_tokens"] == told["data"]["train"]["loss_tokens"]
    assert "Name colours, number 0." in page


@pytest.mark.slow
def test_a_stopped_run_says_so(place: Path) -> None:
    run = place / "run"
    process = start(place, "--output-dir", "run", "--total-steps", "2000", "--num-epochs", "900")
    page = run / "report.html"
    wait_for(process, lambda: page.exists() and re.search(r"step \d+ of 2,000", page.read_text()) is not None)
    assert about(run)["sessions"][0]["state"] == "running"
    assert state_of(run, about(run)).name == "running"
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130
    reached = read_run(run).last_step
    assert f"Stopped: step {reached:,} of 2,000" in (run / "report.html").read_text()


@pytest.mark.slow
def test_a_failed_run_says_why(place: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **named: object) -> None:
        raise RuntimeError("out of luck")

    monkeypatch.setattr("eagle3cli.training.trainer.evaluate", fail)
    assert run_cli("train", "--output-dir", "run").code == 1
    assert "Failed: out of luck: step 6 of 12" in (place / "run" / "report.html").read_text()


@pytest.mark.slow
def test_what_cannot_be_written_is_a_warning(place: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **named: object) -> None:
        raise OSError(28, "No space left on device")

    for name in ("write_text", "write_json", "show"):
        monkeypatch.setattr(session, name, fail)
    done = run_cli("train", "--output-dir", "run")
    assert done.code == 0
    for said in ("report.html was not written", "run.json was not written", "the report shows no rows"):
        assert f"{said}: [Errno 28]" in done.err


def test_a_report_that_takes_long_is_written_less_often(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, written = [0.0], []

    def slow(folder: Path, report: object) -> None:
        written.append(now[0])
        now[0] += 1.0

    monkeypatch.setattr(session.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(session, "write_report", slow)
    listen = session._report_listener(tmp_path, None)  # type: ignore[arg-type]
    for _ in range(50):
        now[0] += 1.0
        listen("eval", {})
        listen("step", {})
    assert written == [1.0, 22.0, 43.0]
