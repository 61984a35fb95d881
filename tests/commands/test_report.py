"""eagle3 report: one run, several runs, every kind of run folder, and what is none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from eagle3cli.console import plot
from tests.conftest import RunCli
from tests.console.test_benchmark import DRAFT, row
from tests.runs.made import make_run


def make_bench(path: Path, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [row("1,0,0,0"), row("1,2,1,3", **DRAFT | more)]
    lines = [{"kind": "settings", "settings": {"target": "models/big", "engine": "local"}}]
    path.write_text(
        "".join(json.dumps(line | {"kind": line.get("kind", "configuration")}) + "\n" for line in [*lines, *rows])
    )
    return path


def make_chain(folder: Path, *, best: float = 2.2, unfinished: str | None = None) -> Path:
    make_run(folder / "train", best=best)
    make_bench(folder / "bench" / "results.jsonl")
    names = ("target", "train", "bench")
    stages = {name: {"state": "begun" if name == unfinished else "done", "seconds": 60.0} for name in names}
    (folder / "stages.json").write_text(json.dumps({"stages": stages}))
    return folder


def test_the_newest_run_is_reported_where_none_is_named(tmp_path: Path, run_cli: RunCli) -> None:
    make_run(tmp_path / "runs" / "old", best=1.5)
    folder = make_run(tmp_path / "runs" / "some" / "new")
    found = run_cli("report")
    assert found.code == 0, found.err
    assert "Best held-out acceptance length 2." in found.out
    assert "report: runs/some/new/report.html" in found.out
    assert "Finished: step 400" in (folder / "report.html").read_text()
    told = run_cli("report", "runs/old/metrics.jsonl", "--json").json
    assert (told["state"], told["steps"], told["best_step"]) == ("finished", 400, 400)
    assert told["report"] == "runs/old/report.html"
    assert told["acceptance_length"][-1] == told["best_acceptance_length"]


def test_runs_side_by_side(tmp_path: Path, run_cli: RunCli) -> None:
    make_run(tmp_path / "a", best=2.0, train={"learning_rate": 1e-3, "ttt_length": 7})
    make_run(tmp_path / "b", best=2.4, speed=500.0, train={"learning_rate": 3e-3, "ttt_length": 5})
    make_bench(tmp_path / "c" / "results.jsonl")
    make_chain(tmp_path / "d", best=1.8)
    found = run_cli("report", "a", "b", "c", "d", "--output-path", "all.html")
    assert found.code == 0, found.err
    assert "4 runs. Best held-out acceptance length: 2.2" in found.out
    assert "by b." in found.out
    lines = [line.split() for line in found.out.splitlines()]
    assert ["train.learning_rate", "0.001", "0.003", "0.001"] in lines
    assert ["t:2", "1,2,1,3", "0", "2.500", "100.0", "1.40x", "2.500", "100.0", "1.40x"] in lines or (
        ["t:2", "1,2,1,3", "0", "2.500", "100", "1.40x", "2.500", "100", "1.40x"] in lines
    )
    page = (tmp_path / "all.html").read_text()
    assert page.count("<svg") == 5
    assert page.count('<polyline data-name="b"') == 4
    assert "compare acceptance, not loss" in page
    told = run_cli("report", "a", "d", "--json").json
    assert list(told["runs"]) == ["a", "d"]
    assert told["report"] is None
    assert len(told["runs"]["d"]["configurations"]) == 2


def test_runs_of_one_name_are_told_apart(tmp_path: Path, run_cli: RunCli) -> None:
    for name in ("x", "y"):
        make_run(tmp_path / name / "train")
    assert list(run_cli("report", "x/train", "y/train", "--json").json["runs"]) == ["x/train", "y/train"]


def test_a_benchmark_keeps_its_own_page(tmp_path: Path, run_cli: RunCli) -> None:
    make_bench(tmp_path / "results.jsonl")
    found = run_cli("report", "results.jsonl")
    assert found.code == 0, found.err
    assert "Speculative decoding of big" in (tmp_path / "results.html").read_text()


def test_a_chain_on_its_way_is_reported_as_far_as_it_is(tmp_path: Path, run_cli: RunCli) -> None:
    folder = make_chain(tmp_path / "chain", unfinished="bench")
    found = run_cli("report", "chain")
    assert found.code == 0, found.err
    assert "Not finished: in stage bench." in found.out
    page = (folder / "report.html").read_text()
    assert "Acceptance length over steps" in page
    assert run_cli("report", "chain", "--json").json["steps"] == 400


def test_a_run_on_its_way_or_torn_is_reported(tmp_path: Path, run_cli: RunCli) -> None:
    folder = make_run(tmp_path / "run", steps=50, state="running")
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"event": "step", "step": 60, "lo')
    found = run_cli("report", "run")
    assert "Running: step 50 of 400 after 0:50. No evaluation yet." in found.out
    (folder / "metrics.jsonl").write_text("")
    assert "Nothing has been logged yet" in run_cli("report", "run").out
    assert run_cli("report", "run", "run").code == 0


@pytest.mark.slow
def test_charts_for_papers(tmp_path: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("matplotlib")
    make_run(tmp_path / "run")
    for _ in range(2):  # the second time over the first ones
        found = run_cli("report", "run", "--charts", "figures")
        assert found.code == 0, found.err
    files = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert len(files) == 26
    for name in files:
        data = (tmp_path / "figures" / name).read_bytes()
        if name.endswith(".png"):
            assert data.startswith(b"\x89PNG")
            assert int.from_bytes(data[16:20], "big") == 1020  # 3.4 inches at 300 dots
        else:
            assert b"var(" not in data
            ElementTree.fromstring(data.decode())
    monkeypatch.setattr(plot, "can_plot", lambda: False)
    found = run_cli("report", "run", "--charts", "svg")
    assert "pip install 'eagle3[plot]'" in found.err
    assert len(list((tmp_path / "svg").iterdir())) == 13


def test_files_of_somebody_else_are_not_overwritten(tmp_path: Path, run_cli: RunCli) -> None:
    make_run(tmp_path / "run")
    (tmp_path / "mine.html").write_text("<p>mine")
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "throughput.svg").write_text("<svg/>")
    for words, where in ((("--output-path", "mine.html"), "mine.html"), (("--charts", "figures"), "throughput.svg")):
        refused = run_cli("report", "run", *words)
        assert refused.code == 2
        assert where in refused.err
    assert (tmp_path / "mine.html").read_text() == "<p>mine"
    assert run_cli("report", "run", "--output-path", "new.html").code == 0
    assert run_cli("report", "run", "--output-path", "new.html").code == 0


def test_what_is_no_run_is_told_with_the_runs_nearby(tmp_path: Path, run_cli: RunCli) -> None:
    none = run_cli("report")
    assert (none.code, none.error == "no-such-run" and "eagle3" in none.err) == (2, True)
    make_run(tmp_path / "runs" / "a")
    make_run(tmp_path / "runs" / "deep" / "b")
    for word in ("runs", "runs/nothing", "elsewhere"):
        found = run_cli("report", word)
        assert found.code == 2
        assert found.error == "no-such-run"
        assert "runs/a" in found.err
        assert "runs/deep/b" in found.err
    make_bench(tmp_path / "bench" / "x.jsonl")
    make_bench(tmp_path / "bench" / "y.jsonl")
    assert run_cli("report", "bench").error == "no-such-run"
    (tmp_path / "bench" / "x.jsonl").write_text('{"kind": "settings", "settings": {}}\n')
    assert run_cli("report", "bench/x.jsonl").error == "no-rows"
