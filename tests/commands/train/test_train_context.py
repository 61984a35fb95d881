"""train --context-parallel: sequences dealt to several processes give what one process gives."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from eagle3cli.runs.folder import read_run
from tests.commands.train.forked import run_forked
from tests.commands.train.ranks import CALM, assert_same_course
from tests.commands.train.runs import result_of
from tests.conftest import RunCli
from tests.tiny import SETTINGS, WORDS

OFFLINE = ("train", "--mode", "offline", *CALM, "--json")
ONLINE = ("train", "--mode", "online", *CALM, "--json")


def talks(count: int) -> str:
    """Rows of very unlike lengths: some shorter than there are pieces, some with several replies."""
    lines = []
    for n in range(count):
        reply = " and ".join(WORDS[(n * k) % len(WORDS)] for k in range(1, 2 + (n * n) % 23))
        turns = [{"role": "user", "content": f"Name {n}."}, {"role": "assistant", "content": reply}]
        lines.append(json.dumps({"id": f"row-{n}", "conversations": turns * (1 + n % 3)}))
    return "\n".join(lines) + "\n"


@pytest.fixture
def place(tmp_path: Path, tiny: Path, run_cli: RunCli) -> Path:
    (tmp_path / "train.jsonl").write_text(talks(14))
    (tmp_path / "eval.jsonl").write_text(talks(4))
    (tmp_path / "eagle3.toml").write_text(SETTINGS.format(tiny=tiny))
    assert run_cli("hidden-states", cwd=tmp_path).code == 0
    return tmp_path


def assert_same_weights(one: Path, other: Path) -> None:
    a, b = (load_file(folder / "best" / "model.safetensors") for folder in (one, other))
    for name in a:
        torch.testing.assert_close(a[name].float(), b[name].float(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_sequences_over_several_processes_give_what_one_gives(place: Path, run_cli: RunCli) -> None:
    """States from disk, and live ones of targets beside the draft or on ranks of their own."""
    words = {
        "two": (2, OFFLINE, ("--context-parallel", "2")),
        "three": (3, OFFLINE, ("--context-parallel", "3", "--draft-sharding", "fsdp")),
        "two by two": (4, OFFLINE, ("--context-parallel", "2", "--max-tokens-per-gpu", "40")),
        "live": (3, ONLINE, ("--context-parallel", "3", "--draft-sharding", "fsdp")),
        "one target": (2, ONLINE, ("--context-parallel", "2", "--tp-size", "2", "--max-tokens-per-gpu", "60")),
        "roles": (3, ONLINE, ("--context-parallel", "2", "--target-gpus", "1", "--max-tokens-per-gpu", "60")),
    }
    run_forked([(ranks, [*mode, "--output-dir", name, *more]) for name, (ranks, mode, more) in words.items()], place)
    for mode, one in ((OFFLINE, "one"), (ONLINE, "one live")):
        result_of(run_cli(*mode, "--output-dir", one, cwd=place))
        for name in (name for name, (_, of, _) in words.items() if of == mode):
            assert read_run(place / name).last_step == 12
            assert_same_course(place / one, place / name)
            assert_same_weights(place / one, place / name)
            assert read_run(place / name).total("tokens") == read_run(place / one).total("tokens")
            if name != "two by two":  # there the first process sees some of the rows at a time
                assert read_run(place / name).metadata["on_policy"] == read_run(place / one).metadata["on_policy"]


@pytest.mark.slow
def test_what_cannot_be_dealt_ends_before_the_work(place: Path, run_cli: RunCli) -> None:
    for words, message in (
        (
            ("--mode", "online", "--gpus", "6", "--context-parallel", "3", "--tp-size", "2"),
            "groups of 3 that share sequences cut through groups of 2 that share a target",
        ),
        (("--mode", "offline", "--context-parallel", "2"), "1 process cannot be grouped by 2"),
        (("--mode", "offline", "--gpus", "3", "--context-parallel", "2"), "3 processes cannot be grouped by 2"),
        (("--context-parallel", "0"), "--context-parallel"),
    ):
        refused = run_cli("train", *words, "--dry-run", cwd=place)
        assert (refused.code, message in refused.err) == (2, True), refused.err
