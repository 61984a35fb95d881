"""eagle3 config and doctor."""

from __future__ import annotations

import contextlib
import os
import pty
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from eagle3cli.settings.fields import fields
from tests.conftest import ROOT, RunCli


def test_show_gives_each_value_with_its_origin(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "eagle3.toml").write_text("[train]\nbatch_size = 8\n")
    shown = run_cli("config", "show", "train", "--set", "train.seed=3").out
    lines = {line.split()[0]: line.split()[1:] for line in shown.splitlines()}
    assert lines["train.batch_size"] == ["8", "eagle3.toml:2"]
    assert lines["train.seed"] == ["3", "--set", "train.seed"]
    assert lines["train.mode"] == ['"online"', "default"]
    (tmp_path / "more.toml").write_text("[train]\n\nbatch_size = 9\n")
    named = run_cli("config", "show", "train.batch_size", "--config", "more.toml", "--json").json
    assert named == {"train.batch_size": {"value": 9, "from": "more.toml:3"}}
    every = run_cli("config", "show", "--json").json
    assert set(every) == set(fields())
    assert every["train.batch_size"] == {"value": 8, "from": "eagle3.toml:2"}


def test_check_passes_and_fails_with_file_and_line(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "eagle3.toml").write_text("[train]\nbatch_size = 8\n")
    assert run_cli("config", "check").out == "eagle3.toml: fine, 1 setting given\n"
    (tmp_path / "b.toml").write_text("[train]\n\nbatchsize = 8\n")
    ran = run_cli("config", "check", "b.toml")
    assert ran.code == 2
    assert ran.error == "unknown-name"
    assert "b.toml:3" in ran.err
    assert "train.batch_size" in ran.err


def test_check_of_nothing_says_so(run_cli: RunCli) -> None:
    ran = run_cli("config", "check")
    assert ran.code == 2
    assert ran.error == "no-such-path"
    assert "eagle3" in ran.err


def test_init_writes_a_file_once(run_cli: RunCli, tmp_path: Path) -> None:
    assert run_cli("config", "init").code == 0
    written = (tmp_path / "eagle3.toml").read_text()
    assert set(tomllib.loads(written)) == {field.table for field in fields().values()}
    again = run_cli("config", "init")
    assert again.code == 2
    assert "--overwrite" in again.err
    assert run_cli("config", "init", "--overwrite").code == 0
    assert run_cli("config", "check").code == 0


def init_on_a_terminal(folder: Path, typed: str, *words: str) -> tuple[int, str]:
    """``eagle3 config init`` with a terminal on stdin and stderr; returns the exit code and what was shown there."""
    master, slave = pty.openpty()
    command = [sys.executable, "-m", "eagle3cli", "config", "init", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes: dict[str, Any] = {"stdin": slave, "stderr": slave, "stdout": subprocess.DEVNULL}
    process = subprocess.Popen(command, cwd=folder, env=environment, start_new_session=True, **pipes)
    os.write(master, typed.encode())
    code = process.wait(300)
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError):  # a pseudo-terminal ends with an error
        while data := os.read(master, 65536):
            shown += data
    os.close(master)
    return code, shown.decode()


def test_init_asks_on_a_terminal_and_enter_takes_the_default(run_cli: RunCli, tmp_path: Path) -> None:
    code, shown = init_on_a_terminal(tmp_path, "me/My-Model\n\nofline\noffline\n\nmany\n2\n")
    assert code == 0, shown
    assert "[Qwen/Qwen3-8B]" in shown
    assert "'ofline' is not online or offline (did you mean offline?)" in shown
    assert "'many' is neither a number of GPUs nor auto" in shown
    given = tomllib.loads((tmp_path / "eagle3.toml").read_text())
    assert {table: keys for table, keys in given.items() if keys} == {
        "target": {"model_path": "me/My-Model"},
        "prepare": {"source": ["sharegpt"]},
        "train": {"mode": "offline", "output_dir": "runs/my-model/train"},
        "run": {"output_dir": "runs/my-model"},
        "launch": {"gpus": "2"},
    }
    assert run_cli("config", "check").out == "eagle3.toml: fine, 6 settings given\n"


def test_init_asks_nothing_with_yes_and_writes_nothing_when_left(tmp_path: Path) -> None:
    code, shown = init_on_a_terminal(tmp_path, "me/model\n\x04")
    assert (code, (tmp_path / "eagle3.toml").exists()) == (130, False), shown
    code, shown = init_on_a_terminal(tmp_path, "", "--yes")
    assert code == 0
    assert "Target model" not in shown
    assert not any(tomllib.loads((tmp_path / "eagle3.toml").read_text()).values())


def test_init_points_editors_to_the_schema_that_lies_beside(run_cli: RunCli, tmp_path: Path) -> None:
    run_cli("config", "init")
    assert "eagle3 config schema > eagle3.schema.json" in (tmp_path / "eagle3.toml").read_text()
    (tmp_path / "eagle3.schema.json").write_text(run_cli("config", "schema").out)
    run_cli("config", "init", "--overwrite")
    assert (tmp_path / "eagle3.toml").read_text().startswith("#:schema ./eagle3.schema.json\n")
    assert run_cli("config", "check").code == 0


def test_config_alone_shows_its_help(run_cli: RunCli) -> None:
    ran = run_cli("config")
    assert ran.code == 0
    assert "schema" in ran.out


def test_doctor_reports_versions_and_fixes_as_data(run_cli: RunCli) -> None:
    ran = run_cli("doctor", "--json")
    found = {check["check"]: check for check in ran.json["checks"]}
    assert "torch" in found["packages"]["detail"]
    assert found["hub"]["detail"] == "offline by HF_HUB_OFFLINE"
    assert all(check["fix"] for check in found.values() if check["state"] == "problem")
    assert ran.code == (1 if ran.json["problems"] else 0)
    assert "packages: eagle3 " in run_cli("doctor").out
