from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from eagle3cli.runtime.hub import go_offline_unless_reached
from tests.conftest import RunCli


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "")
    monkeypatch.chdir(tmp_path)


def test_a_hub_that_nobody_reaches_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with socket.socket() as taken:  # bound and not listening, so that the port answers nobody
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{taken.getsockname()[1]}")
        why = go_offline_unless_reached("OWNER/NAME")
    assert why is not None
    assert "127.0.0.1 does not answer" in why
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert constants.HF_HUB_OFFLINE


def test_a_hub_that_answers_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        assert go_offline_unless_reached("OWNER/NAME") is None
    assert not os.environ["HF_HUB_OFFLINE"]


@pytest.mark.parametrize("name", ["folder", "/absent/folder", "a/b/c", ""])
def test_nobody_is_asked_about_folders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(socket, "create_connection", None)
    assert go_offline_unless_reached(name) is None


@pytest.mark.parametrize("command", ["run", "regenerate", "cache"])
def test_commands_say_that_nothing_is_fetched(
    command: str, run_cli: RunCli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "hub" / "models--someone--model").mkdir(parents=True)  # something of it was downloaded before
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("eagle3cli.runtime.hub.go_offline_unless_reached", lambda name: f"no way to {name}")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": "a", "conversations": [{"role": "user", "content": "How?"}]}\n')
    (tmp_path / "some.toml").write_text('[prepare]\nsource = "rows.jsonl"\n')
    given = {"run": ("some.toml",), "regenerate": ("--input-path", rows), "cache": ("--train-data-path", rows)}[command]
    ran = run_cli(command, *given, "--target-model-path", "someone/model")
    assert ran.code == 1
    assert "no way to someone/model; only what was downloaded before is used" in ran.err
