"""Typical mistakes in settings and flags: each is told with its place and how to mend it, by the program itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eagle3cli.settings.errors import suggest
from eagle3cli.settings.fields import fields, tables
from eagle3cli.settings.renamed import GONE, RENAMED, TABLES
from tests.conftest import RunCli

# What eagle3.toml holds; where the mistake is; what is said of it; how to mend it.
IN_FILES = {
    "misspelt key": (
        "[train]\nlerning_rate = 1e-4\n",
        "eagle3.toml:2",
        "unknown key",
        "did you mean train.learning_rate?",
    ),
    "misspelt table": ("\n[trian]\nseed = 1\n", "eagle3.toml:2", "unknown table trian", "did you mean train?"),
    "key in the wrong table": (
        "[train]\nmax_length = 9\n",
        "eagle3.toml:2",
        "unknown key",
        "stands in the table [data]",
    ),
    "key outside of a table": ("ttt_length = 7\n", "eagle3.toml:1", "outside of a table", "put it below [train]"),
    "wrong type": (
        '[train]\nbatch_size = "eight"\n',
        "eagle3.toml:2: train.batch_size",
        "'eight' is not a whole number",
        "batch_size = 4",
    ),
    "truth for a number": (
        "[train]\nbatch_size = true\n",
        "eagle3.toml:2: train.batch_size",
        "'true' is not a whole number",
        "batch_size = 4",
    ),
    "number for text": (
        "[train]\ntime_budget = 3\n",
        "eagle3.toml:2: train.time_budget",
        "not text",
        'write time_budget = "3"',
    ),
    "out of bounds": (
        "[train]\nttt_length = 99\n",
        "eagle3.toml:2: train.ttt_length",
        "at least 1, at most 16",
        "ttt_length = 7",
    ),
    "wrong choice": (
        '[train]\nmode = "ofline"\n',
        "eagle3.toml:2: train.mode",
        "not online or offline",
        "did you mean offline?",
    ),
    "text for a list": (
        '[bench]\nconfig_list = "1,0,0,0"\n',
        "eagle3.toml:2: bench.config_list",
        "not a list",
        'config_list = ["1,0,0,0"]',
    ),
    "number for a list": (
        "[draft]\naux_layers = 3\n",
        "eagle3.toml:2: draft.aux_layers",
        "not a list",
        "aux_layers = [3]",
    ),
    "text without quotes": ("[train]\nmode = offline\n", "eagle3.toml:2", "broken TOML", 'mode = "offline"'),
    "broken TOML": ("[train\nseed = 1\n", "eagle3.toml:1", "broken TOML", "a table its own line ([train])"),
    "key twice": ("[train]\nseed = 1\nseed = 2\n", "eagle3.toml:3", "broken TOML", "set on line 2 already"),
    "table twice": ("[train]\n\n[view]\n[train]\n", "eagle3.toml:4", "broken TOML", "stands on line 1 already"),
    "table for a value": (
        'train = "online"\n',
        "eagle3.toml:1",
        "train is a table",
        "write [train] on a line of its own",
    ),
    "table in a table": ("[train.more]\nseed = 1\n", "eagle3.toml:1", "unknown key train.more", ""),
    "key of a key": ("[train]\nseed.x = 1\n", "eagle3.toml:2: train.seed", "not a whole number", "seed = 0"),
    "settings that exclude each other": (
        '[target]\ntp_size = 2\ndevice_map = "auto"\n',
        "eagle3.toml:2, eagle3.toml:3",
        "both spread",
        "leave one at its default",
    ),
    "settings that do not fit": (
        "[train]\nbatch_size = 6\nmicro_batch_size = 4\n",
        "eagle3.toml:3, eagle3.toml:2",
        "does not divide",
        "make the batch a multiple",
    ),
    "cuts of a batch that exclude each other": (
        "[train]\nmicro_batch_size = 2\nmax_tokens_per_gpu = 8192\n",
        "eagle3.toml:2, eagle3.toml:3",
        "both cut a batch",
        "leave one out, or give --set train.max_tokens_per_gpu=none",
    ),
    "SpecForge's name": (
        "[train]\nmax_num_steps = 8\n",
        "eagle3.toml:2",
        "unknown key",
        "did you mean train.total_steps?",
    ),
    "SpecForge's table": ("[training]\nnum_epochs = 8\n", "eagle3.toml:1", "unknown table", "did you mean train?"),
    "a key of a tracker": (
        '[train]\nwandb_key = "x"\n',
        "eagle3.toml:2",
        "unknown key",
        "WANDB_API_KEY in the environment",
    ),
}

# What is typed; how the message begins; how to mend it.
ON_THE_LINE = {
    "misspelt flag": ("train --lerning-rate 3", "no such option: --lerning-rate", "did you mean --learning-rate?"),
    "SpecForge's flag": ("train --per-device-batch-size 2", "no such option", "it is --draft-micro-batch-size here"),
    "nearly the flag": ("train --num-epoch 2", "no such option", "did you mean --num-epochs?"),
    "flag of another command": ("prepare --ttt-length 2", "no such option", "--ttt-length is for eagle3 train"),
    "a key on the line": ("train --wandb-key x", "no such option", "WANDB_API_KEY in the environment"),
    "flag without a value": ("train --batch-size", "option '--batch-size' requires an argument", "--batch-size VALUE"),
    "wrong value of a flag": ("train --batch-size x", "--batch-size: 'x' is not a whole number, at least 1", ""),
    "wrong choice of a flag": ("train --mode ofline", "--mode: 'ofline' is not", "did you mean offline?"),
    "misspelt --set": ("train --set train.lr=3", "--set: unknown key train.lr", "did you mean train.learning_rate?"),
    "--set without a table": ("train --set lr=3", "--set: cannot read 'lr=3'", "write --set table.key=value"),
    "no such file": (
        "train --config nope.toml",
        "nope.toml: cannot read settings: no such file",
        "eagle3 config init nope",
    ),
    "misspelt file": (
        "train --config mien.toml",
        "mien.toml: cannot read settings: no such file",
        "did you mean mine.toml?",
    ),
    "misspelt recipe": ("run quikstart", "RECIPE: no recipe or file quikstart", "did you mean quickstart?"),
    "misspelt preset": ("prepare shargpt", "prepare.source: unknown source 'shargpt'", "did you mean 'sharegpt'?"),
    "misspelt command": ("trian", "no such command 'trian'", "did you mean train?"),
}


@pytest.mark.parametrize("mistake", IN_FILES)
def test_a_mistake_in_a_file(mistake: str, run_cli: RunCli, tmp_path: Path) -> None:
    text, where, said, mend = IN_FILES[mistake]
    (tmp_path / "eagle3.toml").write_text(text)
    checked = run_cli("config", "check")
    assert checked.code == 2
    assert checked.err.startswith(f"error: {where}: ")
    assert said in checked.err
    assert mend in checked.err
    told = run_cli("train", "--json").json["error"]
    assert (told["where"], told["exit_code"]) == (where, 2)


@pytest.mark.parametrize("mistake", ON_THE_LINE)
def test_a_mistake_on_the_command_line(mistake: str, run_cli: RunCli, tmp_path: Path) -> None:
    line, begin, mend = ON_THE_LINE[mistake]
    (tmp_path / "mine.toml").write_text("[train]\n")
    ran = run_cli(*line.split())
    assert (ran.code in (1, 2), ran.out) == (True, "")
    assert ran.err.startswith(f"error: {begin}")
    assert mend in ran.err


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
    lines = run_cli("config", "check").err.splitlines()
    assert lines[0] == "error: 4 settings are wrong"
    places = [line.split(" ")[0] for line in lines[1:] if not line.startswith("fix:")]
    assert places == ["eagle3.toml:2:", "eagle3.toml:3:", "eagle3.toml:4:", "eagle3.toml:8:"]
    (tmp_path / "other.toml").write_text("[bench]\nport = 1\n")
    both = run_cli("train", "--config", "other.toml", "--set", "view.sed=1", "--batch-size", "2")
    told = [line for line in both.err.splitlines() if not line.startswith(("fix:", "error:"))]
    assert told[-2].startswith("other.toml:2: unknown key bench.port")
    assert told[-1].startswith("--set: unknown key view.sed")
    assert not any("batch_size" in line for line in told), "the flag's value counts, not the file's"


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
