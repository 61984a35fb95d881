"""Data on stdout, talk on stderr, progress that does not flood a log."""

from __future__ import annotations

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

from eagle3cli.console import progress
from eagle3cli.console.out import Out
from eagle3cli.console.progress import Board, Job, duration
from tests.conftest import ROOT


def test_text_goes_to_stdout_and_talk_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    out = Out()
    out.info("a remark")
    out.warn("look [here]")
    out.print("data")
    out.result({"rows": 3}, "3 rows")
    told = capsys.readouterr()
    assert told.out == "data\n3 rows\n"
    assert told.err == "a remark\nwarning: look [here]\n"


def test_json_leaves_the_result_alone_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    out = Out(json_wanted=True)
    out.print("data")
    out.table("T", ("a",), [(1,)])
    with out.task("walk", 2) as task:
        task.advance(2)
    result = {"path": Path("a"), "nan": float("nan"), "n": numpy.float32(0.5), "of": (1, 2), "t": {1: "ü"}}
    out.result(result, "text")
    told = capsys.readouterr()
    assert json.loads(told.out) == {"path": "a", "nan": None, "n": 0.5, "of": [1, 2], "t": {"1": "ü"}}
    assert "text" not in told.err
    assert "data" in told.err


def test_a_table_lines_up_with_numbers_to_the_right(capsys: pytest.CaptureFixture[str]) -> None:
    Out().table("Speed", ("task", "tokens", "x"), [("gsm8k", 12345, 1.5), ("mt", 7, None)])
    assert capsys.readouterr().out == (
        "Speed\ntask   tokens      x\n-----  ------  -----\ngsm8k  12,345  1.500\nmt          7      -\n"
    )


def test_plain_progress_is_a_line_at_most_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    stream = io.StringIO()
    with Board(stream, live=False).task("walk", 100, "rows", 0) as task:
        for step in range(100):
            now[0] += 0.5
            task.advance(loss=step / 10)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "walk: 20/100 rows (20%), 2.0 rows/s, 0:40 left, loss 1.9"
    assert lines[-1] == "walk: 100/100 rows (100%), 2.0 rows/s, loss 9.9, took 0:50"
    assert len(lines) == 6


def test_the_rate_leaves_out_what_an_earlier_run_did(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    count = Job("walk", 1000, "rows", done=900)
    count.done += 50
    now[0] = 10.0
    assert count.line == "walk: 950/1,000 rows (95%), 5.0 rows/s, 0:10 left"
    assert Job("walk", None, "rows", 0).line == "walk: 0 rows, 0.0 rows/s"


@pytest.mark.parametrize("ended", [1, 8, 63])
def test_the_time_left_is_right_from_the_first_answer_of_a_batch_on(
    ended: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """64 replies of up to 128 tokens are decoded together, a token of each a second: they end nearly together."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    count = Job("bench", 64, "answers", done=0)
    now[0] = 5.0
    count.advance(0, under_way=0.5)
    assert count.seconds_left is None, "prompts are read before the first tokens come"
    now[0] = 64.0
    count.advance(0, under_way=32.0)
    assert count.seconds_left == pytest.approx(64.0)
    count.advance(ended, under_way=(64 - ended) / 2)
    left = count.seconds_left
    assert left is not None
    assert left <= 64.0
    assert (64 - ended) / 2 / 64 * 64.0 <= left
    now[0] = 128.0
    count.advance(64 - ended, under_way=0.0)
    assert count.seconds_left is None


def test_what_costs_nothing_says_nothing_of_the_time_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    count = Job("regenerate", 2000, "rows", done=0)
    count.advance(1900, free=True)
    now[0] = 10.0
    count.advance(10)
    assert count.line == "regenerate: 1,910/2,000 rows (96%), 1.0 rows/s, 1:30 left"


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 59.6, 61, 3600 * 3 + 245)] == ["0:00", "1:00", "1:01", "3:04:05"]


@pytest.mark.parametrize("no_colour", [False, True])
def test_a_terminal_sees_bars_and_remarks_above_them(no_colour: bool) -> None:
    code = (
        "from eagle3cli.console.out import Out\n"
        "out = Out()\n"
        "with out.task('outer [x]', 2) as a:\n"
        "    with out.task('inner', None) as b:\n"
        "        b.advance(3, loss=0.5); out.warn('look [here]')\n"
        "    a.advance(2)\n"
        "out.table('T', ('a',), [(1,)])\n"
        "print('the end', flush=True)\n"
    )
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "NO_COLOR": "1" if no_colour else ""}
    ours, theirs = pty.openpty()
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, env=env, stdout=theirs, stderr=theirs)
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:
            break
        if not part:
            break
        seen += part
    os.close(ours)
    assert process.wait(timeout=150) == 0
    text = seen.decode()
    assert "look [here]" in text
    assert "outer [x]: 2/2 rows (100%)" in text
    assert "the end" in text
    assert ("\x1b[33m" in text) != no_colour
