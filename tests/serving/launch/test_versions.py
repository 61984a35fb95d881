"""An engine that is older than a draft is not started with it: it would pass over options without a word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eagle3cli.models.config import DraftConfig
from eagle3cli.runtime.report import Silent
from eagle3cli.serving.launch import versions
from eagle3cli.serving.launch.commands import Speculation
from eagle3cli.serving.launch.server import started
from eagle3cli.serving.launch.versions import refuse_older
from eagle3cli.settings.models import TargetSettings
from eagle3cli.settings.serving import ServerSettings
from tests.failing import fails

TARGET = {"hidden_size": 64, "num_attention_heads": 4, "num_hidden_layers": 8, "vocab_size": 320}


@pytest.mark.parametrize(
    ("version", "refused"),
    [("0.5.11", True), ("0.5.9.post1", True), ("0.5.12", False), ("0.5.23", False), (None, False)],
)
def test_an_older_engine_is_refused(
    version: str | None, refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "installed_version", lambda name: version)
    draft = Speculation(str(tmp_path), 3, 1, 4)
    (tmp_path / "config.json").write_text(json.dumps(DraftConfig.from_target(TARGET).to_sglang()))
    if not refused:
        refuse_older("sglang", "", str(tmp_path))
        return
    with (
        fails("package-too-old", version),
        started(ServerSettings(), TargetSettings(model_path="m"), Silent(), logs=tmp_path, speculation=draft),
    ):
        pass
    refuse_older("sglang", "/another/python", str(tmp_path))  # whose version nobody knows here
    refuse_older("sglang", "", "owner/draft")
    plain = DraftConfig.from_target(TARGET).to_sglang()
    del plain["norm_output"]
    (tmp_path / "config.json").write_text(json.dumps(plain))
    if version == "0.5.11":
        refuse_older("sglang", "", str(tmp_path))
