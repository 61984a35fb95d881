"""examples/report.md: its tables name the keys that the files have, and its six lines plot a run."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from eagle3cli.runs.events import LISTS, MAPS, NUMBERS
from tests.conftest import ROOT, RunCli
from tests.runs.made import make_run

PAGE = (ROOT / "examples" / "report.md").read_text(encoding="utf-8")
METRICS, REPORT = PAGE.partition("## `report.json`")[::2]


def named(text: str) -> set[str]:
    cells = re.findall(r"^\| (`[^|]*) \|", text, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_metrics_are_documented_key_by_key() -> None:
    assert named(METRICS) == {*NUMBERS, *LISTS, *MAPS}


@pytest.mark.slow
def test_six_lines_plot_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pandas")
    pytest.importorskip("matplotlib").use("Agg")
    make_run(tmp_path / "runs" / "train")
    code = PAGE.partition("```python\n")[2].partition("```")[0]
    assert sum(bool(line.strip()) for line in code.splitlines()) == 6
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "report.md", "exec"), {})
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_a_trained_run_writes_just_these_keys(run_cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hello, and how are you?"}]
    for name in ("train", "eval"):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({"id": name, "conversations": turns}) + "\n")
    data = ("--train-data-path", "train.jsonl", "--eval-data-path", "eval.jsonl", "--target-model-path", tiny)
    few = ("--total-steps", "2", "--ttt-length", "2", "--draft-vocab-size", "200", "--best-by", "0.7")
    ran = run_cli("train", *data, *few, "--set", "train.log_interval=1", "train.eval_interval=1")
    assert ran.code == 0, ran.err
    folder = tmp_path / "runs" / "train"
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [(line["event"], line["step"]) for line in lines][:2] == [("start", 0), ("step", 1)]
    assert {key for line in lines for key in line} - {"event"} == named(METRICS)
    start = lines[0]
    assert start["loss"] == pytest.approx(lines[1]["loss"])  # the first step's rows, before it moved anything
    assert len(start["training_acceptance_length"]) == len(start["acceptance_length"])
    kept = json.loads((folder / "run.json").read_text())
    assert kept["command"].startswith("eagle3")
    assert kept["machine"]["cores"] >= 1
    decoded = kept["decoded"]
    own_and_accepted = "".join(text for kind, text in decoded["runs"] if kind != "rejected")
    assert "ello, and how are you?" in decoded["prompt"] + own_and_accepted
    assert decoded["tokens"] >= decoded["passes"] > 0
    page = (folder / "report.html").read_text()
    assert 'class="own"' in page
    assert re.search(r'data-name="training rows, k = \d"', page)


def test_a_report_of_a_run_has_the_documented_keys() -> None:
    from eagle3cli.pipeline import report

    text = Path(report.__file__).read_text(encoding="utf-8")
    numbers = text.partition("def report_numbers(")[2].partition("\n\n\n")[0]
    assert set(re.findall(r'^        "(\w+)":', numbers, re.MULTILINE)) == named(REPORT) | {"acceptance_by_walk"}
