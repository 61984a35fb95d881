"""Going on with a run: what may change does, also after its end; what may not is a table; refusals leave nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eagle3cli.errors import UsageError
from eagle3cli.runtime.files import locked
from eagle3cli.training.checkpoint import load
from eagle3cli.training.checkpoint.load import CHECKSUMS, PROGRESS, RESUME, checksums
from tests.commands.train.runs import result_of
from tests.conftest import Ran, RunCli
from tests.tiny import SETTINGS, conversations, tiny_target

REFUSED = "the run in this folder was started with other data, draft or training settings"


@pytest.fixture
def place(tmp_path: Path, tiny: Path, run_cli: RunCli) -> Path:
    """A folder with data, an eagle3.toml, and a finished run of six steps."""
    (tmp_path / "train.jsonl").write_text(conversations(14, 0))
    (tmp_path / "eval.jsonl").write_text(conversations(4, 100))
    settings = SETTINGS.format(tiny=tiny).replace("total_steps = 12", "total_steps = 6")
    (tmp_path / "eagle3.toml").write_text(settings)
    result_of(run_cli("train", "--output-dir", "run", "--json"))
    return tmp_path


def files(folder: Path) -> dict[str, tuple[int, bytes]]:
    """Every file with its time and content."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def table_of(ran: Ran) -> list[list[str]]:
    """Key, was and is of what was refused."""
    assert ran.code == 2, ran.err
    assert REFUSED in ran.err
    rows = [line.split("  ") for line in ran.err.splitlines() if line.startswith("  ")]
    return [[cell.strip() for cell in row if cell.strip()] for row in rows[1:]]


@pytest.mark.slow
def test_more_steps_other_evaluations_and_other_saving_go_on(place: Path, run_cli: RunCli) -> None:
    other = ("--eval-interval", 3, "--save-interval", 4, "--keep-checkpoints", 5, "--set", "train.eval_rows=2")
    words = ("train", "--output-dir", "run", "--total-steps", 12, *other)
    planned = run_cli(*words, "--dry-run")
    assert planned.code == 0, planned.err
    assert "the run goes on from it" in planned.out
    ran = run_cli(*words, "--json")
    assert (result_of(ran)["steps_this_time"], ran.json["steps"]) == (6, 12)
    held_out = "held-out rows: others than before, so the best draft is looked for anew"
    assert held_out in ran.err
    assert held_out in planned.out
    events = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    evaluated = [event for event in events if event["event"] == "eval"]
    assert [event["step"] for event in evaluated] == [6, 9, 12]
    assert ran.json["best_acceptance_length"] == pytest.approx(
        max(event["acceptance_length"][-1] for event in evaluated[1:]), abs=1e-3
    )
    assert result_of(run_cli(*words, "--json"))["steps_this_time"] == 0


@pytest.mark.slow
def test_more_rows_go_on_with_the_vocabulary_that_the_run_has(place: Path, run_cli: RunCli) -> None:
    before = load_file(place / "run" / "best" / "model.safetensors")["d2t"]
    more = conversations(14, 0) + conversations(10, 40).replace("red", "你好，世界")
    (place / "more.jsonl").write_text(more)
    words = ("train", "--output-dir", "run", "--train-data-path", "more.jsonl", "--total-steps", 10)
    unknown = "data: not tokenized yet; then it is seen whether these are more of the same rows"
    assert unknown in run_cli(*words, "--dry-run").out
    note = "data: 24 rows, were 14 rows, of which 14 are still there"
    assert run_cli("cache", "--train-data-path", "more.jsonl").code == 0
    assert note in run_cli(*words, "--dry-run").out
    ran = run_cli(*words, "--json")
    assert result_of(ran)["steps_this_time"] == 4
    assert note in ran.err
    assert torch.equal(
        load_file(place / "run" / "checkpoints" / "epoch_1_step_10" / "model.safetensors")["d2t"], before
    )


@pytest.mark.slow
def test_what_is_another_run_is_a_table_for_the_dry_run_too(place: Path, run_cli: RunCli, tiny: Path) -> None:
    (place / "other.jsonl").write_text(conversations(20, 300))
    assert run_cli("cache", "--train-data-path", "other.jsonl").code == 0
    namesake = tiny_target(place / "elsewhere" / tiny.name, seed=1)
    run = files(place / "run")
    for words, table in (
        (["--ttt-length", 2, "--seed", 5], [["train.ttt_length", "3", "2"], ["train.seed", "0", "5"]]),
        (["--draft-vocab-size", 100], [["draft.draft_vocab_size", "200", "100"]]),
        (
            ["--train-data-path", "other.jsonl"],
            [["data", "14 rows", "20 rows, 0 of them the same"], ["data.train_path", "train.jsonl", "other.jsonl"]],
        ),
        (["--target-model-path", namesake], [["target.model_path", str(tiny), str(namesake)]]),
    ):
        for dry in ([], ["--dry-run"]):
            assert table_of(run_cli("train", "--output-dir", "run", *words, *dry)) == table, words
    assert files(place / "run") == run


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [
        ("--attention-backend", "flex_attention"),
        ("--train-data-path", "absent.jsonl"),
        ("--mode", "offline"),
        ("--draft-init", "draft", "--draft-model-path", "absent"),
    ],
)
def test_a_refused_start_leaves_nothing_and_spoils_nothing(
    place: Path, run_cli: RunCli, words: tuple[str, ...]
) -> None:
    run = files(place / "run")
    for folder in ("runs/new", "run"):
        refused = run_cli("train", *words, "--output-dir", folder, *(["--overwrite"] if folder == "run" else []))
        assert refused.code in (1, 2)
    assert not (place / "runs").exists()
    assert files(place / "run") == run


@pytest.mark.slow
def test_a_checkpoint_of_an_earlier_version_says_no_more_than_its_hash(place: Path, run_cli: RunCli) -> None:
    for checkpoint in (place / "run" / "checkpoints").iterdir():
        progress = checkpoint / RESUME / PROGRESS
        state = json.loads(progress.read_text())
        assert state.pop("identity")
        progress.write_text(json.dumps(state))
        (checkpoint / RESUME / CHECKSUMS).write_text(json.dumps(checksums(checkpoint)))
    words = ("train", "--output-dir", "run")
    assert table_of(run_cli(*words, "--learning-rate", "5e-4")) == [["train.learning_rate", "0.001", "0.0005"]]
    assert result_of(run_cli(*words, "--total-steps", 9, "--json"))["steps_this_time"] == 3


@pytest.mark.slow
def test_a_folder_that_another_process_trains_in(place: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch) -> None:
    before = files(place / "run")
    monkeypatch.setattr(load, "PATIENCE", 0.0)
    with locked(place / "run", UsageError("locked", "taken")):
        for more in ((), ("--overwrite",)):
            ran = run_cli("train", "--output-dir", "run", "--total-steps", 12, *more)
            assert ran.code == 2, ran.err
            assert ran.error == "locked"
    assert files(place / "run") == before
    assert run_cli("train", "--output-dir", "run", "--total-steps", 7).code == 0
