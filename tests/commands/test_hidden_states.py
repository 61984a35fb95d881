"""eagle3 hidden-states from the command line: captured, killed, resumed, refused."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from eagle3cli.data.hidden_states.rows import teacher_positions
from eagle3cli.data.hidden_states.store import Store
from eagle3cli.serving.launch.server import free_ports
from tests.conftest import ROOT, RunCli
from tests.tiny import tiny_target

TEXT = "how do i sort a list of numbers you call sorted on the list and keep what it returns"


def write_data(path: Path, rows: int, seed: int) -> Path:
    rng = random.Random(seed)

    def said(words: int) -> str:
        return " ".join(rng.choice(TEXT.split()) for _ in range(words))

    with path.open("w") as f:
        for i in range(rows):
            turns = [("user", said(rng.randrange(3, 20))), ("assistant", said(rng.randrange(3, 60)))]
            f.write(json.dumps({"id": str(i), "conversations": [{"role": r, "content": c} for r, c in turns]}) + "\n")
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_both_splits_are_captured_and_a_second_run_has_nothing_to_do(
    run_cli: RunCli, tmp_path: Path, kind: str
) -> None:
    target = tiny_target(tmp_path / "target", kind)
    train, held_out = write_data(tmp_path / "train.jsonl", 20, 0), write_data(tmp_path / "eval.jsonl", 6, 1)
    flags = ("--model-path", target, "--data-path", train, "--eval-data-path", held_out, "--draft-vocab-size", 64)
    flags = (*flags, "--encoding", "int8")
    ran = run_cli("hidden-states", *flags)
    assert ran.code == 0, ran.err
    assert "next: eagle3 train --mode offline" in ran.out
    assert "bytes a token" in ran.err
    store = Store(tmp_path / "cache" / "hidden_states" / "train")
    assert (len(store), store.meta.encoding) == (20, "int8")
    held = Store(tmp_path / "cache" / "hidden_states" / "eval")
    assert (len(held), held.meta.encoding) == (6, "bf16"), "what is measured on held-out rows is what a server sees"
    assert store.vocab.size == 64
    row = store[7]
    assert len(row.last_RH) == len(teacher_positions(row.loss_mask_S)) > 0
    again = run_cli("hidden-states", *flags, "--json")
    assert again.code == 0
    assert again.json["splits"]["train"]["shards_before"] == again.json["splits"]["train"]["shards"] == 1
    assert "parameters" not in again.err, "the target was loaded for nothing"


DYING = """
import os, signal, sys
from contextlib import contextmanager
from eagle3cli.cli.main import main
from eagle3cli.data.hidden_states import writer
whole = writer.writing_shard
@contextmanager
def dying(path, shape):
    with whole(path, shape) as put:
        def put_one(number, blob):
            put(number, blob)
            if path.name == "shard_00001.safetensors":
                os.kill(os.getpid(), signal.SIGKILL)
        yield put_one
writer.writing_shard = dying
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_kill_9_and_the_same_command_again_gives_the_same_bytes(run_cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    """Killed within the second shard; at random moments: tests/backends/capture/test_capture.py."""
    data = write_data(tmp_path / "train.jsonl", 150, 0)
    flags = ["hidden-states", "--model-path", str(tiny), "--data-path", str(data), "--threads", "1"]
    flags += ["--shard-mb", "1", "--batch-tokens", "512", "--output-path"]
    folder = tmp_path / "killed" / "train"
    command = [sys.executable, "-c", DYING, *flags, str(folder.parent)]
    killed = subprocess.run(
        command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert json.loads((folder / "manifest.json").read_text())["complete"] is False
    resumed = run_cli(*flags, folder.parent, "--json")
    assert resumed.code == 0, resumed.err
    assert 0 < resumed.json["splits"]["train"]["shards_before"] < resumed.json["splits"]["train"]["shards"]
    whole = run_cli(*flags, tmp_path / "whole")
    assert whole.code == 0, whole.err
    assert contents(folder) == contents(tmp_path / "whole" / "train")


@pytest.mark.slow
def test_ranks_share_the_shards(run_cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    """Two processes as torchrun starts them leave what one leaves; the second says nothing."""
    data = write_data(tmp_path / "train.jsonl", 150, 0)
    flags = ["hidden-states", "--model-path", str(tiny), "--data-path", str(data), "--threads", "1"]
    flags += ["--shard-mb", "1", "--batch-tokens", "512", "--encoding", "int8", "--json", "--output-path"]
    (port,) = free_ports(1)
    rendezvous = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": str(ROOT)}
    children = []
    for rank in ("0", "1"):
        env = {**os.environ, **rendezvous, "RANK": rank, "LOCAL_RANK": rank}
        command = [sys.executable, "-m", "eagle3cli", *flags, str(tmp_path / "two")]
        children.append(subprocess.Popen(command, cwd=tmp_path, env=env, text=True, stdout=-1, stderr=-1))
    first, second = [child.communicate(timeout=300) for child in children]
    assert [child.returncode for child in children] == [0, 0], first[1] + second[1]
    told = json.loads(first[0])["splits"]["train"]
    assert (told["shards_before"], told["rows"]) == (0, 150)
    shares = [
        int(line.split("/")[1].split()[0].replace(",", "")) for line in first[1].splitlines() if "capturing" in line
    ]
    assert 0 < shares[0] < told["tokens"], "the first captured its own share"
    assert second[0] == ""
    assert run_cli(*flags, tmp_path / "one").code == 0
    assert contents(tmp_path / "two" / "train") == contents(tmp_path / "one" / "train")


@pytest.mark.slow
def test_changed_settings_are_refused_until_overwrite(run_cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "train.jsonl", 8, 0)
    flags = ("hidden-states", "--model-path", tiny, "--data-path", data)
    assert run_cli(*flags).code == 0
    refused = run_cli(*flags, "--aux-layers", 0, 3, 5)
    assert refused.code == 1
    assert refused.error == "made-differently"
    assert "aux_layers" in refused.err
    assert "1" in refused.err
    assert "3" in refused.err
    assert "4" in refused.err
    assert "0" in refused.err
    assert "5" in refused.err
    assert "--overwrite" in refused.err
    assert run_cli(*flags, "--aux-layers", 0, 3, 5, "--overwrite").code == 0
    assert Store(tmp_path / "cache" / "hidden_states" / "train").meta.aux_layers == (0, 3, 5)


def test_only_the_first_rows(run_cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    data = write_data(tmp_path / "train.jsonl", 8, 0)
    flags = ("--sample-size", 3, "--mem-frac", 0.5, "--batch-size", 2, "--json")
    ran = run_cli("hidden-states", "--model-path", tiny, "--data-path", data, *flags)
    assert "--mem-frac: there is no GPU here" in ran.err
    assert ran.json["splits"]["train"]["rows"] == 3


def test_wrong_use_is_a_clear_error(run_cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    no_data = run_cli("hidden-states", "--model-path", tiny)
    assert no_data.code == 2
    assert no_data.error == "missing-data"
    data = write_data(tmp_path / "train.jsonl", 8, 0)
    no_eval = run_cli("hidden-states", "--model-path", tiny, "--data-path", data, "--split", "eval")
    assert no_eval.code == 2
    assert "--eval-data-path" in no_eval.err
    no_aux = run_cli("hidden-states", "--model-path", tiny, "--data-path", data, "--no-enable-aux-hidden-states")
    assert (no_aux.code, no_aux.error == "conflicting-options" and "EAGLE-3" in no_aux.err) == (2, True)
    no_model = run_cli("hidden-states", "--model-path", tmp_path / "nowhere", "--data-path", data)
    assert no_model.code == 1
    assert "nowhere" in no_model.err
