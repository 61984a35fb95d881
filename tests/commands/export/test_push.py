"""--push: the folder arrives at the hub whole, or an error says why, and no token is ever shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.commands.export.test_export import run_folder  # noqa: F401 (a fixture)
from tests.conftest import RunCli
from tests.models.hub_stub import running_hub

TOKEN = "hf_secretsecretsecret"


@pytest.mark.slow
def test_a_draft_is_uploaded_with_its_card(run_cli: RunCli, run_folder: Path, tmp_path: Path) -> None:  # noqa: F811
    with running_hub(TOKEN) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_XET": "1"}
        words = ("export", "--push", "me/my-draft", "--private", "--license", "apache-2.0", "--json")
        ran = run_cli(*words, process=True, env=env)
        assert ran.code == 0, ran.err
        assert ran.json["url"].endswith("/me/my-draft")
    folder = tmp_path / "runs" / "draft"
    stored = hub.files["me/my-draft"]
    for name in ("config.json", "model.safetensors", "README.md"):
        assert stored[name] == (folder / name).read_bytes()
    assert hub.private["me/my-draft"]
    assert b"license: apache-2.0" in stored["README.md"]
    assert TOKEN not in ran.out + ran.err


@pytest.mark.slow
def test_a_refused_upload_leaves_the_folder_and_says_what_to_do(
    run_cli: RunCli,
    run_folder: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    with running_hub(TOKEN) as hub:
        env = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_wrongwrongwrong"}
        ran = run_cli("export", "--push", "me/my-draft", process=True, env=env)
    assert ran.code == 1
    assert ran.error == "upload-failed"
    assert "401" in ran.err
    assert "HF_TOKEN" in ran.err
    assert "wrongwrong" not in ran.err
    assert (tmp_path / "runs" / "draft" / "model.safetensors").is_file()
    assert hub.files == {}
    offline = run_cli("export", "--overwrite", "--push", "me/my-draft")
    assert (offline.code, offline.error == "upload-failed") == (1, True), offline.err
    wrong = run_cli("export", "--overwrite", "--push", "my-draft")
    assert (wrong.code, wrong.error == "invalid-value" and "owner/name" in wrong.err) == (2, True), wrong.err
