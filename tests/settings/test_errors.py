"""Typical mistakes in settings and flags: each is told with its place and how to mend it, by the program itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eagle3cli.settings.errors import suggest
from eagle3cli.settings.fields import fields, tables
from eagle3cli.settings.renamed import GONE, RENAMED, TABLES
from tests.conftest import RunCli

# What eagle3.toml holds; where the mistake is; the error's code; a value that the error or its fix names.
IN_FILES = {
    "misspelt key": ("[train]\nlerning_rate = 1e-4\n", "eagle3.toml:2", "unknown-name", "train.learning_rate"),
    "misspelt table": ("\n[trian]\nseed = 1\n", "eagle3.toml:2", "unknown-name", "train"),
    "key in the wrong table": ("[train]\nmax_length = 9\n", "eagle3.toml:2", "unknown-name", "[data]"),
    "key outside of a table": ("ttt_length = 7\n", "eagle3.toml:1", "unknown-name", "[train]"),
    "wrong type": (
        '[train]\nbatch_size = "eight"\n',
        "eagle3.toml:2: train.batch_size",
        "invalid-value",
        "batch_size = 4",
    ),
    "truth for a number": (
        "[train]\nbatch_size = true\n",
        "eagle3.toml:2: train.batch_size",
        "invalid-value",
        "batch_size = 4",
    ),
    "number for text": (
        "[train]\ntime_budget = 3\n",
        "eagle3.toml:2: train.time_budget",
        "invalid-value",
        'time_budget = "3"',
    ),
    "out of bounds": ("[train]\nttt_length = 99\n", "eagle3.toml:2: train.ttt_length", "invalid-value", "16"),
    "wrong choice": ('[train]\nmode = "ofline"\n', "eagle3.toml:2: train.mode", "invalid-value", "offline"),
    "text for a list": (
        '[bench]\nconfig_list = "1,0,0,0"\n',
        "eagle3.toml:2: bench.config_list",
        "invalid-value",
        'config_list = ["1,0,0,0"]',
    ),
    "number for a list": (
        "[draft]\naux_layers = 3\n",
        "eagle3.toml:2: draft.aux_layers",
        "invalid-value",
        "aux_layers = [3]",
    ),
    "text without quotes": ("[train]\nmode = offline\n", "eagle3.toml:2", "settings-file", 'mode = "offline"'),
    "broken TOML": ("[train\nseed = 1\n", "eagle3.toml:1", "settings-file", "([train])"),
    "key twice": ("[train]\nseed = 1\nseed = 2\n", "eagle3.toml:3", "settings-file", "line 2"),
    "table twice": ("[train]\n\n[view]\n[train]\n", "eagle3.toml:4", "settings-file", "line 1"),
    "table for a value": ('train = "online"\n', "eagle3.toml:1", "invalid-value", "[train]"),
    "table in a table": ("[train.more]\nseed = 1\n", "eagle3.toml:1", "unknown-name", "train.more"),
    "key of a key": ("[train]\nseed.x = 1\n", "eagle3.toml:2: train.seed", "invalid-value", "seed = 0"),
    "settings that exclude each other": (
        '[target]\ntp_size = 2\ndevice_map = "auto"\n',
        "eagle3.toml:2, eagle3.toml:3",
        "invalid-value",
        "target.device_map",
    ),
    "settings that do not fit": (
        "[train]\nbatch_size = 6\nmicro_batch_size = 4\n",
        "eagle3.toml:3, eagle3.toml:2",
        "invalid-value",
        "train.batch_size 6",
    ),
    "cuts of a batch that exclude each other": (
        "[train]\nmicro_batch_size = 2\nmax_tokens_per_gpu = 8192\n",
        "eagle3.toml:2, eagle3.toml:3",
        "invalid-value",
        "--set train.max_tokens_per_gpu=none",
    ),
    "SpecForge's name": ("[train]\nmax_num_steps = 8\n", "eagle3.toml:2", "unknown-name", "train.total_steps"),
    "SpecForge's table": ("[training]\nnum_epochs = 8\n", "eagle3.toml:1", "unknown-name", "train?"),
    "a key of a tracker": ('[train]\nwandb_key = "x"\n', "eagle3.toml:2", "unknown-name", "WANDB_API_KEY"),
}

# What is typed; the error's code, and where it is; a value that the error or its fix names.
ON_THE_LINE = {
    "misspelt flag": ("train --lerning-rate 3", "command-line", None, "--learning-rate"),
    "SpecForge's flag": ("train --per-device-batch-size 2", "command-line", None, "--draft-micro-batch-size"),
    "nearly the flag": ("train --num-epoch 2", "command-line", None, "--num-epochs"),
    "flag of another command": ("prepare --ttt-length 2", "command-line", None, "eagle3 train"),
    "a key on the line": ("train --wandb-key x", "command-line", None, "WANDB_API_KEY"),
    "flag without a value": ("train --batch-size", "command-line", None, "--batch-size VALUE"),
    "wrong value of a flag": ("train --batch-size x", "invalid-value", "--batch-size", "'x'"),
    "wrong choice of a flag": ("train --mode ofline", "invalid-value", "--mode", "offline"),
    "misspelt --set": ("train --set train.lr=3", "unknown-name", "--set", "train.learning_rate"),
    "--set without a table": ("train --set lr=3", "invalid-value", "--set", "--set table.key=value"),
    "no such file": ("train --config nope.toml", "settings-file", "nope.toml", "eagle3 config init nope"),
    "misspelt file": ("train --config mien.toml", "settings-file", "mien.toml", "mine.toml"),
    "misspelt recipe": ("run quikstart", "no-such-path", "RECIPE", "quickstart"),
    "misspelt preset": ("prepare shargpt", "unknown-name", "prepare.source", "'sharegpt'"),
    "misspelt command": ("trian", "command-line", None, "train?"),
}


@pytest.mark.parametrize("mistake", IN_FILES)
def test_a_mistake_in_a_file(mistake: str, run_cli: RunCli, tmp_path: Path) -> None:
    text, where, code, value = IN_FILES[mistake]
    (tmp_path / "eagle3.toml").write_text(text)
    checked = run_cli("config", "check")
    assert (checked.code, checked.error) == (2, code)
    assert value in checked.err
    answer = run_cli("train", "--json").json["error"]
    assert (answer["code"], answer["where"], answer["exit_code"]) == (code, where, 2)


@pytest.mark.parametrize("mistake", ON_THE_LINE)
def test_a_mistake_on_the_command_line(mistake: str, run_cli: RunCli, tmp_path: Path) -> None:
    line, code, where, value = ON_THE_LINE[mistake]
    (tmp_path / "mine.toml").write_text("[train]\n")
    ran = run_cli(*line.split())
    assert (ran.code in (1, 2), ran.out, ran.error) == (True, "", code)
    assert ran.err.startswith(f"error [{code}]: {where}: " if where else f"error [{code}]: ")
    assert value in ran.err


def test_a_path_that_does_not_exist(run_cli: RunCli, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "eagle3.toml").write_text(f'[target]\nmodel_path = "{tiny}"\n[data]\ntrain_path = "rows.jsonl"\n')
    checked = run_cli("config", "check")
    assert checked.code == 0, "a later command may make it"
    assert "eagle3.toml:4: data.train_path: rows.jsonl is not there yet" in checked.err
    ran = run_cli("cache")
    assert (ran.code, "rows.jsonl" in ran.err, "fix:" in ran.err) == (1, True, True), ran.err


def test_all_mistakes_are_told_at_once_in_the_order_of_the_lines(run_cli: RunCli, tmp_path: Path) -> None:
    text = "[train]\nbatch_size = 0\nlerning_rate = 1\n[trian]\nx = 1\ny = 2\n[view]\nseed = 'x'\n"
    (tmp_path / "eagle3.toml").write_text(text)
    ran = run_cli("config", "check")
    lines = ran.err.splitlines()
    assert (ran.error, lines[0].count("4")) == ("invalid-value", 1)
    places = [line.split(" ")[0] for line in lines[1:] if not line.startswith("fix:")]
    assert places == ["eagle3.toml:2:", "eagle3.toml:3:", "eagle3.toml:4:", "eagle3.toml:8:"]
    (tmp_path / "other.toml").write_text("[bench]\nport = 1\n")
    both = run_cli("train", "--config", "other.toml", "--set", "view.sed=1", "--batch-size", "2")
    listed = [line for line in both.err.splitlines() if not line.startswith(("fix:", "error ["))]
    assert (listed[-2].startswith("other.toml:2: "), "bench.port" in listed[-2]) == (True, True)
    assert (listed[-1].startswith("--set: "), "view.sed" in listed[-1]) == (True, True)
    assert not any("batch_size" in line for line in listed), "the flag's value counts, not the file's"


def test_suggestions() -> None:
    assert suggest("train.batchsize", fields()) == "train.batch_size"
    assert suggest("ttt_lenght", fields()) == "train.ttt_length"
    assert suggest("zzz", fields()) is None


def test_new_names_exist_and_old_ones_do_not() -> None:
    assert set(RENAMED.values()) <= set(fields())
    assert set(TABLES.values()) <= set(tables())
    ours = {key.partition(".")[2] for key in fields()}
    assert not ours & GONE.keys()
    assert not set(tables()) & TABLES.keys()
    assert json.loads(json.dumps(GONE)) == GONE
