"""Regeneration through servers that fail, die and hang: every row in one place, with the reply that is its own."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from eagle3cli.runtime import stop
from eagle3cli.runtime.report import Silent
from eagle3cli.serving.client.pool import Rules
from eagle3cli.serving.regenerate import remote
from eagle3cli.serving.regenerate.regenerate import regenerate
from eagle3cli.settings.tables import Settings
from tests.conftest import ROOT
from tests.failing import fails
from tests.serving.client.fake_server import Faults, running
from tests.serving.regenerate.remote_run import (
    ILL,
    QUICK,
    check,
    lines_of,
    rows_done,
    run,
    user,
    write_rows,
)


@pytest.mark.slow
def test_two_thousand_rows_through_servers_that_fail(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "in.jsonl", 2000)
    slow = Faults(seconds=0.3, places=4, most_waiting=4, tells_load=False, seed=2)
    with running(ILL, Faults(**{**vars(ILL), "silent": 0.002, "seed": 1}), slow) as servers:
        done = run(servers, rows, tmp_path / "out")
        assert all(server.served for server in servers)
    assert (done.rows, done.generated, done.errors, done.shards) == (2000, 2000, 0, 4)
    check(tmp_path / "out", 2000)


@pytest.mark.slow
def test_a_server_that_dies_and_comes_back(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "in.jsonl", 600)
    with running(Faults(seconds=0.05), Faults(seconds=0.05)) as (one, two):

        def die_and_come_back() -> None:
            time.sleep(0.4)
            one.do(one.stop())
            time.sleep(0.5)
            one.do(one.start())

        thread = threading.Thread(target=die_and_come_back)
        thread.start()
        run([one, two], rows, tmp_path / "out", table={"max_concurrency": 16})
        thread.join()
    check(tmp_path / "out", 600)


@pytest.mark.slow
def test_kill_at_three_random_moments(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "in.jsonl", 2000)
    out = tmp_path / "out"
    moments = random.Random(0)
    with running(
        Faults(**{**vars(ILL), "seconds": 0.05}), Faults(**{**vars(ILL), "seconds": 0.05, "seed": 1})
    ) as servers:
        words = ["regenerate", "--input-path", str(rows), "--output-dir", str(out), "--num-per-shard", "300"]
        words += ["--server-address-port", *[server.address for server in servers]]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        kills = 0
        for _ in range(3):
            process = subprocess.Popen([sys.executable, "-m", "eagle3cli", *words], env=environment, cwd=tmp_path)
            aim = lines_of(out) + moments.randrange(5, 190)
            while process.poll() is None and lines_of(out) < aim:
                time.sleep(0.002)
            kills += process.poll() is None
            process.send_signal(signal.SIGKILL)
            process.wait()
        assert kills == 3
        before = lines_of(out)
        assert 50 < before < 2000
        finished = [json.dumps([user(f"q{row}")]) for row in rows_done(out)]
        requests = [sum(server.seen[text] for server in servers) for text in finished]
        done = run(servers, rows, out, num_per_shard=300)
        assert done.rows_now == 2000 - before == 2000 - len(finished)
        assert requests == [sum(server.seen[text] for server in servers) for text in finished]
    check(out, 2000)


def test_failed_rows_are_retried_alone(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "in.jsonl", 30)
    with running(Faults()) as (server,):
        usual = server.chat

        def refuse_some(body: dict[str, Any]) -> dict[str, Any]:
            if body["messages"][0]["content"] in ("q4", "q7"):
                return {"status": 400, "message": "no"}
            return usual(body)

        server.answer = refuse_some
        done = run([server], rows, tmp_path / "out", num_per_shard=10)
        assert done.reasons == {"the server refuses it (400: no)": 2}
        check(tmp_path / "out", 30, errors=2)
        server.answer = None
        before = server.served.total()
        again = run([server], rows, tmp_path / "out", num_per_shard=10, retry_errors=True)
        assert server.served.total() - before == 2
    assert (again.errors, again.rows_now, again.generated) == (0, 2, 30)
    check(tmp_path / "out", 30)


@pytest.mark.slow
def test_a_stop_signal_keeps_what_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "GRACE_SECONDS", 0.1)
    rows = write_rows(tmp_path / "in.jsonl", 200)
    with running(Faults(seconds=0.2)) as servers:
        requested = stop.Stop()
        monkeypatch.setattr(stop, "_active", requested)

        def stop_after_some() -> None:
            while not lines_of(tmp_path / "out"):
                time.sleep(0.01)
            requested.requested = signal.SIGTERM

        threading.Thread(target=stop_after_some, daemon=True).start()
        with fails("stopped", "200") as stopped:
            run(servers, rows, tmp_path / "out", table={"max_concurrency": 16})
        assert stopped.value.exit_code == 143
        monkeypatch.setattr(stop, "_active", None)
        assert 0 < lines_of(tmp_path / "out") < 200
        run(servers, rows, tmp_path / "out", table={"max_concurrency": 64})
    check(tmp_path / "out", 200)


@pytest.mark.slow
def test_dead_servers_end_the_work_and_lose_nothing(tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "in.jsonl", 300)
    with running(Faults(seconds=0.02, places=4)) as (server,):

        def stop_half_way() -> None:
            while not (tmp_path / "out").exists() or not lines_of(tmp_path / "out"):
                time.sleep(0.01)
            server.do(server.stop())

        threading.Thread(target=stop_half_way, daemon=True).start()
        with fails("server-error"):
            run([server], rows, tmp_path / "out", Rules(tick=0.05, patience=0.5, retry_wait=0.01))
        before = lines_of(tmp_path / "out")
        assert 0 < before < 300
        server.do(server.start())
        assert run([server], rows, tmp_path / "out").rows_now == 300 - before
    check(tmp_path / "out", 300)


@pytest.mark.slow
def test_the_notes_tell_who_holds_the_work_up(tmp_path: Path) -> None:
    class Told(Silent):
        notes: dict[str, object] = {}

        def task(self, name: str, total: int | None = None, unit: str = "rows", done: int = 0) -> Any:
            return nullcontext(SimpleNamespace(advance=lambda count=1, **notes: self.notes.update(notes)))

    rows = write_rows(tmp_path / "in.jsonl", 200)
    seen = []
    for fault, concurrency in ((Faults(seconds=0.05, places=2), 32), (Faults(seconds=0.3), 8)):
        report = Told()
        with running(fault) as (server,):
            tables = {
                "server": {"address_port": [server.address], "max_concurrency": concurrency},
                "regenerate": {"input_path": rows, "output_dir": tmp_path / str(len(seen)), "sample_range": "0:60"},
            }
            limits: list[str] = []
            report.notes = _Spy(limits)
            regenerate(Settings.model_validate(tables), report, QUICK)
        seen.append(limits)
    assert any("wait inside them" in limit for limit in seen[0])
    assert "--max-concurrency" in seen[1]


class _Spy(dict[str, object]):
    def __init__(self, limits: list[str]) -> None:
        self.limits = limits

    def update(self, notes: Any) -> None:  # type: ignore[override]
        if "limited by" in notes:
            self.limits.append(notes["limited by"])
