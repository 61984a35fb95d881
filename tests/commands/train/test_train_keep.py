"""train --keep-states: the first epoch is live and written, later ones are read; losses are those of a live run."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from eagle3cli.data.hidden_states.store import Store
from eagle3cli.training import keep
from tests.commands.train.forked import run_forked
from tests.commands.train.ranks import CALM, events
from tests.commands.train.runs import result_of
from tests.commands.train.test_train_context import talks
from tests.conftest import RunCli
from tests.tiny import SETTINGS

STEADY = ("train", *CALM, "--lr-schedule", "constant", "--warmup-ratio", "0", "--json")
KEEP = (*STEADY, "--keep-states")
EPOCH = 4
"""Steps: 14 rows, four at a time."""


@pytest.fixture
def place(tmp_path: Path, tiny: Path) -> Path:
    (tmp_path / "train.jsonl").write_text(talks(14))
    (tmp_path / "eval.jsonl").write_text(talks(4))
    (tmp_path / "eagle3.toml").write_text(SETTINGS.format(tiny=tiny))
    return tmp_path


def losses(run: Path) -> list[float]:
    return [event["loss"] for event in events(run) if event["event"] == "step"]


def read(run: Path) -> list[float]:
    """Share of each step's time that went into reading states."""
    return [event["time"].get("reading", 0.0) for event in events(run) if event["event"] == "step"]


def assert_same_states(one: Path, other: Path) -> None:
    a, b = (Store(run / keep.FOLDER) for run in (one, other))
    assert len(a) == len(b) == 14
    for row in range(14):
        assert torch.equal(a[row].token_ids_S, b[row].token_ids_S)
        assert torch.equal(a[row].top_R, b[row].top_R)
        torch.testing.assert_close(a[row].aux_UC.float(), b[row].aux_UC.float(), rtol=0.01, atol=1e-5)
        torch.testing.assert_close(a[row].last_RH.float(), b[row].last_RH.float(), rtol=0.01, atol=1e-5)


@pytest.mark.slow
def test_later_epochs_are_read_and_a_run_that_ended_in_the_first_goes_on(place: Path, run_cli: RunCli) -> None:
    result_of(run_cli(*STEADY, "--output-dir", "live"))
    planned = run_cli(*KEEP, "--output-dir", "kept", "--dry-run").json
    result_of(run_cli(*KEEP, "--output-dir", "kept"))
    live, kept = losses(place / "live"), losses(place / "kept")
    assert kept[:EPOCH] == live[:EPOCH]
    assert kept == pytest.approx(live, rel=2e-3)  # states in bfloat16
    assert not any(read(place / "kept")[:EPOCH])
    assert all(read(place / "kept")[EPOCH:])
    store = place / "kept" / keep.FOLDER
    size = sum(file.stat().st_size for file in store.glob("shard_*"))
    assert size <= planned["kept_states_bytes"] <= 1.2 * size

    result_of(run_cli(*KEEP, "--output-dir", "again", "--total-steps", "2"))
    part = max((place / "again" / keep.FOLDER).glob("shard_*.part"))
    with part.open("r+b") as file:  # as if the machine had failed before this row was on the disk
        file.seek(-4, 2)
        file.write(bytes(4))
    result_of(run_cli(*KEEP, "--output-dir", "again"))
    assert losses(place / "again") == pytest.approx(kept, rel=1e-4)
    assert_same_states(place / "kept", place / "again")


@pytest.mark.slow
def test_several_ranks_and_targets_of_their_own_keep_the_same(place: Path, run_cli: RunCli) -> None:
    more = ("--max-tokens-per-gpu", "60")
    run_forked(
        [
            (2, [*KEEP, "--output-dir", "int8", "--encoding", "int8"]),
            (2, [*KEEP, "--output-dir", "shared", "--tp-size", "2", *more]),
            (3, [*KEEP, "--output-dir", "roles", "--target-gpus", "1", *more]),
        ],
        place,
    )
    result_of(run_cli(*KEEP, "--output-dir", "one"))
    one = losses(place / "one")
    assert losses(place / "int8") == pytest.approx(one, rel=1e-2)
    for name in ("shared", "roles"):
        assert losses(place / name) == pytest.approx(one, rel=1e-4)
        assert_same_states(place / "one", place / name)


@pytest.mark.slow
def test_what_cannot_be_kept_is_refused_before_the_work(
    place: Path, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch
) -> None:
    for words, message in (
        (("--mode", "offline"), "train.keep_states is for a live target"),
        (("--echo-factor", "2"), "either spares the target its later passes"),
        (("--gpus", "2", "--context-parallel", "2"), "needs rows that are whole on a process"),
    ):
        refused = run_cli(*KEEP, *words, "--dry-run")
        assert (refused.code, message in refused.err) == (2, True), refused.err
    monkeypatch.setattr(keep, "free_bytes", lambda folder: 1000)
    refused = run_cli(*KEEP, "--output-dir", "full")
    assert (refused.code, refused.error == "disk-full") == (1, True), refused.err
    assert not (place / "full" / "metrics.jsonl").exists()
