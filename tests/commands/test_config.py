"""eagle3 config and doctor."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

from eagle3cli.settings.fields import fields
from tests.conftest import RunCli


def test_show_gives_each_value_with_its_origin(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "eagle3.toml").write_text("[train]\nbatch_size = 8\n")
    shown = run_cli("config", "show", "train", "--set", "train.seed=3").out
    lines = {line.split()[0]: line.split()[1:] for line in shown.splitlines()}
    assert lines["train.batch_size"] == ["8", "eagle3.toml:2"]
    assert lines["train.seed"] == ["3", "--set", "train.seed"]
    assert lines["train.mode"] == ['"online"', "default"]
    every = run_cli("config", "show", "--json").json
    assert set(every) == set(fields())
    assert every["train.batch_size"] == {"value": 8, "from": "eagle3.toml:2"}


def test_check_passes_and_fails_with_file_and_line(run_cli: RunCli, tmp_path: Path) -> None:
    (tmp_path / "eagle3.toml").write_text("[train]\nbatch_size = 8\n")
    assert run_cli("config", "check").out == "eagle3.toml: fine, 1 setting given\n"
    (tmp_path / "b.toml").write_text("[train]\n\nbatchsize = 8\n")
    ran = run_cli("config", "check", "b.toml")
    assert ran.code == 2
    assert "b.toml:3: unknown key train.batchsize" in ran.err
    assert "did you mean train.batch_size?" in ran.err


def test_check_of_nothing_says_so(run_cli: RunCli) -> None:
    ran = run_cli("config", "check")
    assert ran.code == 2
    assert "eagle3 config init" in ran.err


def test_init_writes_a_file_once(run_cli: RunCli, tmp_path: Path) -> None:
    assert run_cli("config", "init").code == 0
    written = (tmp_path / "eagle3.toml").read_text()
    assert set(tomllib.loads(written)) == {field.table for field in fields().values()}
    again = run_cli("config", "init")
    assert again.code == 2
    assert "--overwrite" in again.err
    assert run_cli("config", "init", "--overwrite").code == 0
    assert run_cli("config", "check").code == 0


def test_schema_describes_every_table(run_cli: RunCli) -> None:
    schema = json.loads(run_cli("config", "schema").out)
    assert set(schema["properties"]) == {field.table for field in fields().values()}
    assert schema["additionalProperties"] is False


def test_config_alone_shows_its_help(run_cli: RunCli) -> None:
    ran = run_cli("config")
    assert ran.code == 0
    assert "schema" in ran.out


def test_doctor_reports_versions_and_fixes_as_data(run_cli: RunCli) -> None:
    ran = run_cli("doctor", "--json")
    found = {check["check"]: check for check in ran.json["checks"]}
    assert "torch" in found["versions"]["detail"]
    assert found["hub"]["detail"] == "offline by HF_HUB_OFFLINE"
    assert all(check["fix"] for check in found.values() if check["state"] == "problem")
    assert ran.code == (1 if ran.json["problems"] else 0)
    assert "versions" in run_cli("doctor").out
