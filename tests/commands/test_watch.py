"""eagle3 watch on a real terminal, on a pipe and once: runs that go on, end, crash and were never begun."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from eagle3cli.runs import watch
from eagle3cli.runs.find import run_folders
from eagle3cli.runs.pipeline import pipeline_progress
from eagle3cli.runs.state import this_process
from tests.conftest import RunCli
from tests.pseudo_terminal import on_terminal, screen
from tests.runs.made import make_run, step_line


def end(folder: Path, **session: Any) -> None:
    """Let the run of a folder end."""
    about = json.loads((folder / "run.json").read_text())
    about["sessions"][-1] |= session
    (folder / "run.json").write_text(json.dumps(about))


@pytest.mark.slow
def test_a_terminal_shows_a_run_until_it_ends(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", steps=200, state="running")
    done = set()

    def seen(text: str) -> None:
        if "200 of 400 (50%)" in text and "more" not in done:
            done.add("more")
            with (folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(step_line(210, 210.0)) + "\n")
        if "210 of 400 (52%)" in text and "end" not in done:
            done.add("end")
            end(folder, state="finished")

    code, text = on_terminal(["watch", "run"], tmp_path, seen)
    assert code == 0
    shown = screen(text)
    assert done == {"more", "end"}
    assert [row.split()[0] for row in shown if row][:8] == (
        ["run", "step", "loss", "acceptance", "tokens/s", "time", "peak", "last"]
    )
    assert shown[0].split() == ["run", "run,", "finished"]
    assert "run: finished" in shown[8:]
    assert "▁" in text
    assert "\x1b[36m" in text


def test_a_pipe_gets_lines_and_a_failed_run_is_an_error(
    tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_run(tmp_path / "run", steps=200, state="running")
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: end(folder, state="failed", reason="out of luck"))
    found = run_cli("watch", "run")
    assert found.code == 1
    assert found.out.startswith("run: 200/400 steps, 3:20 left, loss 4.6")
    assert "run, failed: out of luck" in found.out
    found = run_cli("watch", "run", "--json")
    assert (found.code, found.json["state"], found.json["ended"]) == (1, "failed", True)


def test_once_shows_the_run_as_it_is(tmp_path: Path, run_cli: RunCli) -> None:
    make_run(tmp_path / "runs" / "mine", steps=200, state="running")
    found = run_cli("watch", "--once")
    assert found.code == 0
    assert "runs/mine, running" in found.out
    assert "200 of 400" in found.out
    told = run_cli("watch", "runs/mine", "--once", "--json").json
    assert (told["state"], told["step"], told["ended"], told["kind"]) == ("running", 200, False, "train")
    assert len(told["losses"]) == 20


def test_a_crash_is_seen(tmp_path: Path, run_cli: RunCli) -> None:
    folder = make_run(tmp_path / "run", steps=200, state="running")
    sleeper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    end(folder, **(this_process() | {"pid": sleeper.pid, "started": started(sleeper.pid)}))
    assert run_cli("watch", "run", "--once", "--json").json["state"] == "running"
    sleeper.kill()
    sleeper.wait()
    found = run_cli("watch", "run")
    assert found.code == 1
    assert "no sign of life since 20" in found.out
    assert "its process is gone" in found.out


def started(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]


def test_a_chain_is_watched_while_its_folders_are_renamed(tmp_path: Path) -> None:
    """What a stage makes has a temporary name first: it may be gone once it is looked at."""
    folder = make_stages(tmp_path / "chain", export={"state": "begun", "process": this_process()})

    def export() -> None:
        for _ in range(1000):
            (folder / ".draft.tmp-1").mkdir()
            (folder / ".draft.tmp-1").rename(folder / "draft")
            (folder / "draft").rmdir()

    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(export)
        while not work.done():
            assert pipeline_progress(folder).state.name == "running"
            assert list(run_folders(tmp_path)) == [folder]
        work.result()


def make_stages(folder: Path, **states: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "stages.json").write_text(json.dumps({"stages": states}))
    return folder


def test_a_chain_tells_its_stage(tmp_path: Path, run_cli: RunCli) -> None:
    begun = {"state": "begun", "process": this_process()}
    folder = make_stages(tmp_path / "chain", prepare={"state": "done"}, regenerate=begun)
    found = run_cli("watch", "chain", "--once")
    assert "chain, running" in found.out
    assert "1 done, in regenerate for 0:0" in found.out
    make_stages(folder, prepare={"state": "done"}, regenerate={"state": "done"}, train=begun)
    make_run(folder / "train", steps=200, state="running")
    found = run_cli("watch", "chain", "--once")
    assert "2 done, in train for 0:0" in found.out
    assert "200 of 400 (50%), 3:20 trained, about 3:20 left" in found.out
    make_stages(
        folder, prepare={"state": "done"}, train={"state": "begun", "process": {**this_process(), "started": "1"}}
    )
    found = run_cli("watch", "chain")
    assert (found.code, "ended in train, no sign of life since 20" in found.out) == (1, True)
    make_stages(folder, train={"state": "done"})
    assert pipeline_progress(folder).state.name == "running"  # the next stage is about to begin
    (folder / "report.json").write_text("{}")
    (folder / "report.html").write_text("")
    assert run_cli("watch", "chain").code == 0
    for path in (folder, *folder.rglob("*")):
        os.utime(path, (time.time() - 100,) * 2)
    (folder / "report.json").unlink()
    os.utime(folder, (time.time() - 100,) * 2)
    assert pipeline_progress(folder).state.message.startswith("stopped between two stages")
    make_stages(folder, train={"state": "done", "process": this_process()})
    assert pipeline_progress(folder).state.name == "running"
    make_stages(folder, train={"state": "done", "process": {**this_process(), "started": "1"}})
    assert pipeline_progress(folder).state.name == "stopped"
    (folder / "stages.json").write_text("torn {")
    assert pipeline_progress(folder).summary == "0 done"


def test_what_cannot_be_watched_is_told(tmp_path: Path, run_cli: RunCli) -> None:
    assert run_cli("watch").code == 2
    make_run(tmp_path / "runs" / "a")
    found = run_cli("watch", "runs/b")
    assert (found.code, found.error == "no-such-run" and "runs/a" in found.err) == (2, True)
    (tmp_path / "results.jsonl").write_text('{"kind": "settings", "settings": {}}\n')
    assert run_cli("watch", "results.jsonl").error == "not-a-file"


@pytest.mark.slow
def test_training_shows_the_same_above_its_bars(place: Path) -> None:
    code, text = on_terminal(["train", "--output-dir", "run"], place)
    assert code == 0, text
    shown = [row for row in screen(text) if row]
    heads = [row.split()[0] for row in shown]
    for head in ("loss", "acceptance", "tokens/s", "time", "peak"):
        assert heads.count(head) == 1, shown
    assert "\x1b[36m" in text
    assert any(row.startswith("step 12: acceptance length") for row in shown)
    assert any(row.startswith("trained 12 steps (12 now)") for row in shown)
    assert "steps/s, 0:0" in text
    assert "left, loss" not in text  # told above the bar
