"""Real trackers without a network: a run that is killed and goes on stands in each of them once and whole."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import sqlite3
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.commands.train.runs import wait_for
from tests.conftest import ROOT, RunCli
from tests.tiny import SETTINGS, conversations, training_place

STEPS = [2, 4, 6, 8, 10, 12]
KEYS = {"WANDB_API_KEY": "w" * 20 + "0123456789abcdef" + "wxyz", "SWANLAB_API_KEY": "swan0123456789abcdef0"}
ALL = ("wandb", "tensorboard", "swanlab", "mlflow", "trackio")


def installed() -> list[str]:
    return [name for name in ALL if importlib.util.find_spec(name)]


def need(name: str) -> None:
    pytest.importorskip(name, reason=f'not installed; pip install "eagle3[track-{name}]"')


@pytest.fixture(scope="module")
def tracked_run(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> tuple[Path, str]:
    """A run told to all installed trackers, killed after a checkpoint, and gone on with; and what it said."""
    place = tmp_path_factory.mktemp("tracked")
    training_place(place, tiny)
    if not installed():
        return place, ""
    environment = {
        **os.environ,
        **KEYS,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "offline",
        "SWANLAB_MODE": "offline",
        "TRACKIO_DIR": str(place / "trackio"),
        "MLFLOW_TRACKING_URI": f"file:{place / 'mlflow'}",
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HOME": str(place / "home"),
    }
    (place / "home").mkdir()
    words = [sys.executable, "-m", "eagle3cli", "train", "--output-dir", "run", "--report-to", *installed()]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            words, cwd=place, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    killed = start()
    wait_for(killed, (place / "run" / "checkpoints" / "epoch_1_step_6").exists)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    again = start()
    said = again.communicate(timeout=300)[0]
    assert again.returncode == 0, said
    return place, said


def logged(path: Path) -> Iterator[bytes]:
    """The records of a file in LevelDB's log format behind a header of 7 bytes, as wandb and SwanLab write it."""
    blob, at, part = path.read_bytes(), 7, b""
    while at + 7 <= len(blob):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, size, kind = struct.unpack_from("<IHB", blob, at)
        data = blob[at + 7 : at + 7 + size]
        at += 7 + size
        part = data if kind in (1, 2) else part + data
        if kind in (1, 4):
            yield part


@pytest.mark.slow
def test_tensorboard_shows_every_step_once(tracked_run: tuple[Path, str]) -> None:
    need("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tracked_run[0] / "run" / "trackers" / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("train/loss")] == STEPS
    assert [e.step for e in events.Scalars("eval/acceptance_length_k_5")] == [6, 12]
    rows = history(tracked_run[0])
    assert [e.value for e in events.Scalars("train/loss")] == pytest.approx(
        [row["loss"] for row in rows if row["event"] == "step"], rel=1e-5
    )


def history(place: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_wandb_keeps_one_run_for_sync(tracked_run: tuple[Path, str]) -> None:
    need("wandb")
    from wandb.proto import wandb_internal_pb2 as pb

    place, said = tracked_run
    run_id = json.loads((place / "run" / "trackers" / "wandb.json").read_text())["id"]
    steps, ids, config = [], set(), set()
    for path in sorted((place / "run" / "trackers" / "wandb" / "wandb").glob("offline-run-*/*.wandb")):
        for blob in logged(path):
            record = pb.Record()
            record.ParseFromString(blob)
            if record.WhichOneof("record_type") == "history":
                row = {"/".join(i.nested_key) or i.key: json.loads(i.value_json) for i in record.history.item}
                steps.append(row["step"])
                assert row["train/loss"] > 0
            elif record.WhichOneof("record_type") == "run":
                ids.add(record.run.run_id)
                config |= {item.key for item in record.run.config.update}
    assert (steps, ids) == (STEPS, {run_id})
    assert "train.learning_rate" in config
    assert f"wandb: wandb sync run/trackers/wandb/wandb/offline-run-*-{run_id}" in said


def test_mlflow_holds_one_run(tracked_run: tuple[Path, str]) -> None:
    need("mlflow")
    base = tracked_run[0] / "mlflow"
    run_id = json.loads((tracked_run[0] / "run" / "trackers" / "mlflow.json").read_text())["id"]
    (folder,) = (path for path in base.glob("*/*") if path.name == run_id)
    assert len([path for path in folder.parent.iterdir() if path.is_dir() and len(path.name) == 32]) == 1
    lines = (folder / "metrics" / "train" / "loss").read_text().splitlines()
    assert [int(line.split()[2]) for line in lines] == STEPS
    assert (folder / "params" / "train.batch_size").read_text() == "4"
    assert "status: 3" in (folder / "meta.yaml").read_text()  # finished


def test_trackio_holds_one_run(tracked_run: tuple[Path, str]) -> None:
    need("trackio")
    run_id = json.loads((tracked_run[0] / "run" / "trackers" / "trackio.json").read_text())["id"]
    with sqlite3.connect(tracked_run[0] / "trackio" / "eagle3.db") as database:
        rows = database.execute("select run_name, step from metrics order by id").fetchall()
    assert rows == [(run_id, step) for step in STEPS]


def test_swanlab_keeps_one_run_for_sync(tracked_run: tuple[Path, str]) -> None:
    need("swanlab")
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record

    place = tracked_run[0]
    run_id = json.loads((place / "run" / "trackers" / "swanlab.json").read_text())["id"]
    steps = []
    for path in sorted((place / "run" / "trackers" / "swanlab").glob(f"run-*/run-{run_id}.swanlab")):
        for blob in logged(path):
            record = Record()
            record.ParseFromString(blob)
            if record.HasField("scalar") and record.scalar.key == "train/loss":
                steps.append(record.scalar.step)
    assert steps == STEPS


def test_no_key_stands_anywhere(tracked_run: tuple[Path, str]) -> None:
    if not installed():
        pytest.skip("no tracker is installed")
    place, said = tracked_run
    for key in KEYS.values():
        assert key not in said
        for path in place.rglob("*"):
            assert not path.is_file() or key.encode() not in path.read_bytes(), path


@pytest.mark.slow
def test_a_run_that_is_done_reaches_a_tracker_chosen_later(tmp_path: Path, tiny: Path, run_cli: RunCli) -> None:
    need("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (tmp_path / "train.jsonl").write_text(conversations(14, 0))
    (tmp_path / "eagle3.toml").write_text(SETTINGS.format(tiny=tiny).replace('eval_path = "eval.jsonl"', ""))
    assert run_cli("train", "--output-dir", "run", "--total-steps", "4").code == 0
    ran = run_cli("train", "--output-dir", "run", "--total-steps", "4", "--report-to", "tensorboard", "--json")
    assert ran.code == 0, ran.err
    assert ran.json["steps_this_time"] == 0
    events = EventAccumulator(str(tmp_path / "run" / "trackers" / "tensorboard")).Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [2, 4]


def test_a_misspelt_tracker_is_told(run_cli: RunCli) -> None:
    ran = run_cli("train", "--report-to", "tensorbord")
    assert (ran.code, ran.error == "invalid-value") == (2, True), ran.err
